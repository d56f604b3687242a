"""Routers and experts written by hand: what eager computes, state that they write included, or a reason."""

from __future__ import annotations

import pytest

from galvatron.errors import PlanError
from galvatron.ir.planned import PlanShorthand
from galvatron.ir.program import LayerKind
from galvatron.ir.types import TensorType
from tests.marks import some_slow
from tests.parity.harness import costed, job_of, planned
from tests.parity.routed import ROUTED
from tests.parity.training import assert_same_training, batches, train
from tests.ranks import run_ranks

pytestmark = pytest.mark.filterwarnings("ignore:.*is taken with all rows")

PLANS = ["m1/dp2", "m1/ep2", "m2/ep2", "m1/tp2", "m2/dp2-ep2-zero1", "pp2/m2/1f1b/ep2", "m2/ep2-recompute"]
WRITTEN_AT_THE_END = [
    "pp2/m4/zbv/ep2",
    "pp2/m4/interleaved2/dp2",
    "pp2/m4/1f1b/tp2",
    "m4/ep2-zero2",
    "m2/dp2-ep2-zero3",
]
WHOLE_BATCH = {"capacity of a batch": "cumsum works across the samples", "balance loss": "begins backwards before"}
"""What needs all micro-batches at once, or before the first backward."""


@pytest.mark.parametrize(
    ("name", "plan"),
    some_slow(
        [("counting", "m2/ep2"), ("balancing", "pp2/m2/1f1b/dp1")],
        [(name, plan) for name in ROUTED for plan in PLANS] + [("balancing", plan) for plan in WRITTEN_AT_THE_END],
    ),
)
def test_three_steps_equal_one_device(name: str, plan: str) -> None:
    model, shorthand = f"routed: {name}", PlanShorthand.parse(plan)
    try:
        job = job_of(model, planned(model, plan, shorthand.world_size))
    except PlanError as error:
        assert shorthand.micro_batches > 1 and WHOLE_BATCH[name] in str(error), error
        return
    assert_same_training(model, plan, run_ranks(train, shorthand.world_size, job, batches(model)))


@pytest.mark.one_in(2)
@pytest.mark.parametrize(("name", "plan"), [("balancing", "pp2/m2/1f1b/ep2"), ("balance loss", "pp2/m2/gpipe/ep2")])
def test_a_bias_follows_from_counts_when_the_step_ends(name: str, plan: str) -> None:
    """In whole numbers, of which equal ones differ by nothing, and in the stage that counts."""
    program = planned(f"routed: {name}", plan, 4)
    closings = [layer for layer in program.all_layers if layer.kind is LayerKind.CLOSING]
    assert [layer.name for layer in closings] == (
        ["layers.0.closing", "layers.1.closing"] if name == "balancing" else []
    )
    assert {v.type for layer in closings for v in program.class_of[layer.cls].graph.inputs} <= {TensorType("i64", (4,))}


@pytest.mark.slow
@pytest.mark.parametrize("name", ROUTED)
def test_experts_are_one_op_where_rows_have_no_places(name: str) -> None:
    program, _ = costed(f"routed: {name}")
    ops = [op.name for layer in program.all_layers for op in program.class_of[layer.cls].graph.ops]
    assert ops.count("grouped_linear") == (0 if name == "capacity" else 4)
