"""`eval_step`: the loss of the model in evaluation mode under any plan, and nothing of the training changes."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from galvatron import runtime as rt
from galvatron.ir.planned import PlanShorthand
from tests.models import precise
from tests.parity.harness import TOLERANCES, Expected, Job, executor, job_of, planned, relative_errors, subject
from tests.parity.subjects import Batch
from tests.parity.ways import WAYS
from tests.ranks import run_ranks

MODEL = "gpt2-dropout"
PLANS = [
    "m2/dp4-zero3",
    "pp2/m4/1f1b/tp2",
    "pp2/m4/gpipe/tp2+sp-recompute",
    "pp2/m4/interleaved2/dp2",
    "pp2/m3/zbv/dp2-zero1",
]


def evaluate_between(world: rt.World, job: Job, batches: list[Batch]) -> tuple[list[float], list[float], float]:
    """On a rank: losses of two steps without an evaluation between them, and with one, and the loss of that."""

    def new() -> rt.Executor:
        return executor(world, job, optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-2), seed=3)

    plain, program = new(), new()
    expected = [float(plain.train_step(batch)) for batch in batches[:2]]
    losses = [float(program.train_step(batches[0]))]
    before = program.full_gradients()
    program.load_full_state_dict(start := program.full_state_dict())
    found = program.eval_step(batches[2])
    assert not found.requires_grad
    assert same(program.full_gradients(), before) and same(program.full_state_dict(), start)
    losses.append(float(program.train_step(batches[1])))
    return expected, losses, float(found)


def same(some: dict[str, Tensor], others: dict[str, Tensor]) -> bool:
    return some.keys() == others.keys() and all(torch.equal(value, others[name]) for name, value in some.items())


def evaluate(world: rt.World, job: Job, batch: Batch) -> float:
    return float(executor(world, job).eval_step(batch))


@pytest.mark.one_in(6)
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("samples", [24, 10])
def test_loss_is_that_of_the_model_in_evaluation_mode(plan: str, samples: int) -> None:
    case = subject(MODEL)
    job = job_of(MODEL, planned(MODEL, plan, global_batch_size=24))
    batch = case.batch(samples - samples % job.shards, 1)
    losses = run_ranks(evaluate, 4, job, batch)
    case.model.eval()
    with precise(case.model), torch.no_grad():
        expected = float(case.loss(batch))
    case.model.train()
    assert len(set(losses)) == 1
    assert abs(losses[0] - expected) <= TOLERANCES[torch.float64] * abs(expected)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("plan", PLANS[1:])
def test_training_goes_on_as_if_nothing_had_been_evaluated(plan: str) -> None:
    job = job_of(MODEL, planned(MODEL, plan, global_batch_size=24))
    batches = [subject(MODEL).batch(size, seed) for seed, size in enumerate((24, 24, 12))]
    for expected, losses, _ in run_ranks(evaluate_between, 4, job, batches):
        assert losses == expected


WAYS_PLANS = ("m2/dp2-zero3", "m1/tp2", "pp2/m2/1f1b/dp1")
MORE_WAYS_PLANS = ("m1/tp2+sp", "m2/ulysses2-recompute", "m4/dp1-recompute=selective", "pp2/m2/interleaved2/dp1",
                   "pp2/m4/gpipe/dp2", "pp2/m2/zbv/tp2")  # fmt: skip


def both(world: rt.World, job: Job, batch: Batch) -> tuple[float, dict[str, Tensor], float]:
    """On a rank: loss and gradients in training, then the loss in evaluation."""
    program = executor(world, job)
    loss = float(program.forward_backward(batch))
    return loss, program.full_gradients(), float(program.eval_step(batch))


def goes_both_ways(which: str, plan: str) -> None:
    """Training is that of the model in training, and evaluation that of the model in evaluation mode."""
    name, world_size = f"ways: {which}", PlanShorthand.parse(plan).world_size
    case = subject(name)
    if which == "normed":
        plan = plan.replace("m2/", "m1/").replace("m4/", "m1/")
    program = planned(name, plan, world_size, global_batch_size=8)
    batch = case.batch(8, 1)
    loss, gradients, evaluated = run_ranks(both, world_size, job_of(name, program), batch)[0]
    case = replace(case, model=copy.deepcopy(case.model))
    with precise(case.model):
        trained = case.loss(batch)
        trained.backward()
        with torch.no_grad():  # the model has written what a step in training does
            case.model.eval()
            expected = float(case.loss(batch))
    known = {n: p.grad for n, p in case.model.named_parameters() if p.grad is not None}
    errors = relative_errors(loss, gradients, Expected(trained.detach(), known))
    assert max(errors.values()) <= TOLERANCES[torch.float64], errors
    assert abs(evaluated - expected) <= TOLERANCES[torch.float64] * abs(expected)
    assert abs(evaluated - loss) > 1e-5 * abs(loss)


@pytest.mark.one_in(16)
@pytest.mark.parametrize("plan", WAYS_PLANS)
@pytest.mark.parametrize("which", WAYS)
def test_a_model_that_asks_whether_it_trains(which: str, plan: str) -> None:
    goes_both_ways(which, plan)


@pytest.mark.slow
@pytest.mark.parametrize("plan", MORE_WAYS_PLANS)
@pytest.mark.parametrize("which", WAYS)
def test_more_that_ask_whether_they_train(which: str, plan: str) -> None:
    goes_both_ways(which, plan)
