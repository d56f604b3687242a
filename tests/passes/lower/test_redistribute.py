"""Between layers of different strategies: the collectives, and shapes that are whole at every step."""

from __future__ import annotations

import pytest

from galvatron.ir.graph import Value
from galvatron.ir.layout import BROADCAST, REPLICATE, Layout, Shard
from galvatron.ir.strategy import Strategy
from galvatron.ir.types import LOCAL_BATCH, TensorType
from galvatron.partition import Crossing

STREAM = TensorType("f32", (LOCAL_BATCH, 6, 8))


def steps_of(before: str, source: Layout, after: str, target: Layout) -> list[str]:
    """The value and each step of its redistribution, as text."""
    step = Crossing.between(
        (Value("h", STREAM, source), Strategy.parse(before).mesh),
        (Value("x", STREAM, target), Strategy.parse(after).mesh),
        differentiable=True,
    )
    if step is None:
        return []
    cls = step.cls("r")
    steps = [(op.target, op.result.type) for op in cls.graph.ops]
    return [str(cls.graph.inputs[0].type), *(f"{target} {type_}" for target, type_ in steps)]


@pytest.mark.parametrize(
    ("before", "source", "after", "target", "steps"),
    [
        ("dp4", (Shard(0),), "tp4", (REPLICATE,), ["f32[b, 6, 8]", "comm.all_gather f32[4*b, 6, 8]"]),
        # Here the consumer's share of the samples is a fraction of the producer's: `b` is the smaller of the two.
        ("tp4", (REPLICATE,), "dp4", (Shard(0),), ["f32[4*b, 6, 8]", "comm.slice f32[b, 6, 8]"]),
        ("tp4", (REPLICATE,), "dp2-tp2", (Shard(0), REPLICATE), ["f32[2*b, 6, 8]", "comm.slice f32[b, 6, 8]"]),
        ("dp2-tp2", (Shard(0), REPLICATE), "dp4", (Shard(0),), ["f32[2*b, 6, 8]", "comm.slice f32[b, 6, 8]"]),
        (
            "dp2-tp2",
            (Shard(0), REPLICATE),
            "tp2-dp2",
            (REPLICATE, Shard(0)),
            ["f32[2*b, 6, 8]", "comm.all_gather f32[4*b, 6, 8]", "comm.slice f32[2*b, 6, 8]"],
        ),
        ("dp4", (Shard(0),), "dp4", (Shard(0),), []),
        ("tp4", (REPLICATE,), "tp4", (BROADCAST,), ["f32[b, 6, 8]", "comm.copy f32[b, 6, 8]"]),
    ],
)
def test_steps(before: str, source: Layout, after: str, target: Layout, steps: list[str]) -> None:
    assert steps_of(before, source, after, target) == steps
