"""A number that is not finite: every rank raises the same error, which names where it comes from, and can go on."""

from __future__ import annotations

import pytest
import torch

from galvatron import runtime as rt
from galvatron.errors import NonFiniteError
from tests.ranks import run_ranks
from tests.runtime import small_model as small

Plan = tuple[int, int, int]
SAMPLES = 8


def new_executor(world: rt.World, plan: Plan, schedule: str = "1f1b") -> rt.Executor:
    pp, dp, tp = plan
    torch.manual_seed(3)
    return rt.Executor(
        small.make_stages(small.make_mesh(world, pp, dp, tp, schedule), dp, tp),
        microbatches=2,
        schedule=schedule,
        model=rt.ModelState(small.Model().double()),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        detect_nonfinite=True,
    )


def spoil(executor: rt.Executor, layers: list[str], direction: str, micro_batch: int, rank: int) -> None:
    """Have some layers compute something that is not finite, in one micro-batch on one rank."""
    for stage in executor.stages:
        for name in set(layers) & set(stage.layers):
            layer = stage.layers[name]

            def function(*args, inner=layer.function, random=stage.random):
                result = inner(*args)
                if random.microbatch != micro_batch or executor.mesh.world.rank != rank:
                    return result
                if direction == "forward":
                    return result / torch.zeros(())
                return result + (result * 0).sqrt()

            layer.function = function


def error_of(
    world: rt.World, plan: Plan, schedule: str, layers: list[str], direction: str, micro_batch: int, rank: int
) -> tuple[str, bool, bool]:
    executor = new_executor(world, plan, schedule)
    before = executor.full_state_dict()
    functions = {layer: layer.function for stage in executor.stages for layer in stage.layers.values()}
    spoil(executor, layers, direction, micro_batch, rank)
    with pytest.raises(NonFiniteError) as error:
        executor.train_step(small.batch(SAMPLES))
    after = executor.full_state_dict()
    for layer, function in functions.items():
        layer.function = function
    executor.train_step(small.batch(SAMPLES))
    trained = new_executor(world, plan, schedule)
    trained.train_step(small.batch(SAMPLES))
    expected = trained.full_state_dict()
    goes_on = all(torch.equal(value, expected[name]) for name, value in executor.full_state_dict().items())
    return str(error.value), all(torch.equal(value, before[name]) for name, value in after.items()), goes_on


@pytest.mark.parametrize(
    ("plan", "schedule", "layers", "direction", "micro_batch", "rank", "words"),
    [
        ((1, 1, 1), "1f1b", ["block_1"], "forward", 1, 0, "the result of layer block_1 is not finite"),
        ((1, 1, 1), "1f1b", ["block_1"], "backward", 0, 0, "of layer block_1 is not finite"),
        # The first in the order of execution: the forward from the first block on, the backward from the last.
        ((2, 1, 1), "1f1b", ["block_1", "block_0"], "forward", 0, 0, "the result of layer block_0 is not finite"),
        ((2, 1, 1), "gpipe", ["block_2", "block_3"], "backward", 1, 1, "of layer block_3 is not finite"),
        ((2, 1, 1), "interleaved2", ["block_2"], "forward", 1, 0, "the result of layer block_2 is not finite"),
        ((2, 1, 1), "zbv", ["block_2"], "backward", 1, 1, "of layer block_2 is not finite"),
        ((1, 2, 1), "1f1b", ["block_3"], "forward", 0, 1, "the result of layer block_3 is not finite"),
    ],
)
def test_the_first_layer_is_named_on_every_rank(plan, schedule, layers, direction, micro_batch, rank, words):
    size = plan[0] * plan[1] * plan[2]
    results = run_ranks(error_of, size, plan, schedule, layers, direction, micro_batch, rank)
    assert len({message for message, _, _ in results}) == 1
    message, untouched, goes_on = results[0]
    assert words in message
    assert f"in the {direction} of micro-batch {micro_batch} on stage " in message
    assert f", on rank {rank}; nothing was updated" in message
    assert untouched and goes_on


def parameter_alone(world: rt.World) -> str:
    """The gradient of a parameter overflows where no other gradient does."""
    executor = new_executor(world, (1, 1, 1))
    stage = executor.stages[0]
    head = stage.layers["head"]
    head.function = lambda x, labels, count, scale, weight, inner=head.function: inner(
        x, labels, count, scale, weight + (weight[:1] * 0).sqrt()
    )
    with pytest.raises(NonFiniteError) as error:
        executor.forward_backward(small.batch(SAMPLES))
    return str(error.value)


def test_the_gradient_of_a_parameter():
    assert (
        "the gradient of embedding.weight of layer head is not finite in 16 of 368 values"
        in run_ranks(parameter_alone, 1)[0]
    )


def masked(world: rt.World) -> bool:
    """An infinity among what needs no gradient is meant, as in a mask."""
    executor = new_executor(world, (1, 1, 1))
    stage = executor.stages[0]
    stage.layer("mask", lambda x: torch.full_like(x, -torch.inf))
    executor._detector = type(executor._detector)(executor.stages, 1, world)  # type: ignore[misc]  # not None
    stage.register_forward_pre_hook(lambda *_: stage.layers["mask"](torch.ones(2)) is None)
    return bool(executor.forward_backward(small.batch(SAMPLES)).isfinite())


def test_infinities_in_masks_are_none_of_its_business():
    assert run_ranks(masked, 1) == [True]
