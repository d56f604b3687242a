"""Loss, gradients, clipping and optimizer steps of the hand-written stages against one process, in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from galvatron import runtime as rt
from galvatron.errors import PlanError
from tests.ranks import run_ranks
from tests.runtime import small_model as small

PLANS = [(pp, dp, tp) for pp in (1, 2, 4) for dp in (1, 2, 4) for tp in (1, 2, 4) if pp * dp * tp <= 4]


def new_model() -> small.Model:
    torch.manual_seed(3)
    return small.Model().double()


def new_executor(world: rt.World, plan: tuple[int, int, int], **options) -> rt.Executor:
    pp, dp, tp = plan
    stages = small.make_stages(small.make_mesh(world, pp, dp, tp, options.get("schedule", "1f1b")), dp, tp)
    state = rt.ModelState(new_model())
    return rt.Executor(stages, model=state, shards=dp, **options)


def close(actual: Tensor, expected: Tensor, name: str = "loss") -> None:
    error = (actual - expected).norm() / expected.norm().clamp(min=1e-12)
    assert error < 1e-9, f"{name}: relative error {error:.2e}"


def one_plan(world: rt.World, plan: tuple[int, int, int], microbatches: int, schedule: str) -> None:
    executor = new_executor(
        world,
        plan,
        microbatches=microbatches,
        schedule=schedule,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-2),
        max_grad_norm=0.3,
    )
    model = new_model()
    used = {name: p for name, p in model.named_parameters(remove_duplicate=False) if not name.startswith("pooler")}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)

    batch = small.batch(8)
    loss = model(**batch)
    loss.backward()
    for _ in range(2):  # the second call must not see the gradients of the first
        close(executor.forward_backward(batch), loss.detach())
    whole = executor.full_gradients()
    assert set(whole) == set(used)
    for name, parameter in used.items():
        assert parameter.grad is not None
        close(whole[name], parameter.grad, name)
    assert executor.full_gradients(rank0_only=True).keys() == (set(used) if world.rank == 0 else set())

    for seed in range(3):
        batch = small.batch(8 if seed < 2 else 16, seed)  # the batch may grow between steps
        model.zero_grad()
        loss = model(**batch)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.3)
        optimizer.step()
        close(executor.train_step(batch), loss.detach())
        close(executor.gradient_norm(), norm.clamp(max=0.3 * norm / (norm + 1e-6)), "norm after clipping")
    state = executor.full_state_dict()
    assert list(state) == list(model.state_dict())
    for name, value in model.state_dict().items():
        close(state[name], value, name)


def reload(world: rt.World, plan: tuple[int, int, int]) -> None:
    executor = new_executor(world, plan)
    torch.manual_seed(9)
    other = small.Model().double()
    values = other.state_dict()
    del values["embedding.weight"]  # tied: either name is enough
    executor.load_full_state_dict(values)
    state = executor.full_state_dict(rank0_only=True)
    assert bool(state) == (world.rank == 0)
    for name, value in state.items():
        assert torch.equal(value, other.state_dict()[name]), name
    close(executor.forward_backward(small.batch(4)), other(**small.batch(4)).detach())


def frozen_first_stage(world: rt.World) -> tuple[float, float]:
    mesh = small.make_mesh(world, 2, 1, 1)
    stages = small.make_stages(mesh, 1, 1)
    state = rt.ModelState(new_model())
    rt.materialize(stages, state)
    for name, parameter in stages[0].named_parameters():
        parameter.requires_grad_(mesh.pipeline_rank == 1 and name != "embedding.weight")
        spec = stages[0].state_specs[name]
        stages[0].state_specs[name] = replace(spec, frozen=not parameter.requires_grad)
    executor = rt.Executor(
        stages, microbatches=4, model=state, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1)
    )
    losses = [float(executor.train_step(small.batch(8))) for _ in range(2)]
    names = set(executor.full_gradients())
    assert names and all(name.startswith(("blocks.2", "blocks.3")) for name in names)
    return losses[0], losses[1]


def refused(world: rt.World, plan: tuple[int, int, int], change: str) -> str:
    executor = new_executor(world, plan, microbatches=2)
    batch = small.batch(4)
    state = new_model().state_dict()
    with pytest.raises(PlanError) as error:
        if change == "odd batch":
            executor.forward_backward(small.batch(5))
        elif change == "missing input":
            executor.forward_backward({"id": batch["ids"], "label": batch["labels"]})
        elif change == "missing tensor":
            executor.load_full_state_dict({name: value for name, value in state.items() if name != "scale"})
        elif change == "unknown tensor":
            executor.load_full_state_dict({**state, "scales": state["scale"]})
        elif change == "wrong shape":
            executor.load_full_state_dict({**state, "scale": torch.zeros(3)})
    return str(error.value)


@pytest.mark.one_in(6)
@pytest.mark.parametrize("microbatches", [1, 4])
@pytest.mark.parametrize(("pp", "dp", "tp"), [plan for plan in PLANS if plan[0] == 1])
def test_one_stage_equals_one_process(pp, dp, tp, microbatches):
    if 8 % (microbatches * dp):
        microbatches = 2
    run_ranks(one_plan, pp * dp * tp, (pp, dp, tp), microbatches, "1f1b")


@pytest.mark.one_in(6)
@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
@pytest.mark.parametrize("microbatches", [1, 4])
@pytest.mark.parametrize(("pp", "dp", "tp"), [plan for plan in PLANS if plan[0] > 1])
def test_pipeline_equals_one_process(pp, dp, tp, microbatches, schedule):
    run_ranks(one_plan, pp * dp * tp, (pp, dp, tp), microbatches, schedule)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("schedule", ["interleaved2"])
@pytest.mark.parametrize("microbatches", [1, 4])
@pytest.mark.parametrize(("pp", "dp", "tp"), [(2, 1, 1), (2, 2, 1), (2, 1, 2)])
def test_several_stages_on_a_rank_equal_one_process(pp, dp, tp, microbatches, schedule):
    run_ranks(one_plan, pp * dp * tp, (pp, dp, tp), microbatches, schedule)


def test_a_stage_without_trained_parameters():
    results = run_ranks(frozen_first_stage, 2)
    assert results[0] == results[1] and results[0][1] < results[0][0]


@pytest.mark.parametrize("plan", [(1, 1, 1), (2, 1, 2), (2, 2, 1)])
def test_state_can_be_replaced(plan):
    run_ranks(reload, plan[0] * plan[1] * plan[2], plan)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("odd batch", "5 samples does not divide into 2 data-parallel shards: pass a multiple of 2"),
        ("missing input", "no input 'ids'; did you mean 'id'"),
        ("missing tensor", "the state has no 'scale'"),
        ("unknown tensor", "no 'scales'; did you mean 'scale'"),
        ("wrong shape", "scale has shape (3,) in the state"),
    ],
)
def test_bad_input_is_refused_on_every_rank(change, words):
    messages = run_ranks(refused, 2, (1, 2, 1), change)
    assert all(words in message for message in messages), messages
