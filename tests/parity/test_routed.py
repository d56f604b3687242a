"""Routers and experts written by hand: what eager computes, state that they write included, or a reason."""

from __future__ import annotations

import pytest

from galvatron.errors import PlanError
from galvatron.ir.planned import PlanShorthand
from tests.marks import some_slow
from tests.parity.harness import costed, job_of, planned
from tests.parity.routed import ROUTED
from tests.parity.training import assert_same_training, batches, train
from tests.ranks import run_ranks

pytestmark = pytest.mark.filterwarnings("ignore:.*is taken with all rows")

PLANS = ["m1/dp2", "m1/ep2", "m2/ep2", "m1/tp2", "m2/dp2-ep2-zero1", "pp2/m2/1f1b/ep2", "m2/ep2-recompute"]
WHOLE_BATCH = {
    "capacity of a batch": "cumsum works across the samples",
    "balance loss": "begins backwards before",
    "balancing": "begins backwards before",
}
"""What needs all micro-batches at once, or before the first backward."""


@pytest.mark.parametrize(
    ("name", "plan"),
    some_slow([("counting", "m2/ep2")], [(name, plan) for name in ROUTED for plan in PLANS]),
)
def test_three_steps_equal_one_device(name: str, plan: str) -> None:
    model, shorthand = f"routed: {name}", PlanShorthand.parse(plan)
    try:
        job = job_of(model, planned(model, plan, shorthand.world_size))
    except PlanError as error:
        assert shorthand.micro_batches > 1 and WHOLE_BATCH[name] in str(error), error
        return
    assert_same_training(model, plan, run_ranks(train, shorthand.world_size, job, batches(model)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ROUTED)
def test_experts_are_one_op_where_rows_have_no_places(name: str) -> None:
    program, _ = costed(f"routed: {name}")
    ops = [op.name for layer in program.all_layers for op in program.class_of[layer.cls].graph.ops]
    assert ops.count("grouped_linear") == (0 if name == "capacity" else 4)
