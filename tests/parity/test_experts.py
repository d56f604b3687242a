"""Experts in each implementation that models have, as rows times the matrices that they choose: what eager computes."""

from __future__ import annotations

import pytest

from galvatron.errors import PlanError
from tests import models
from tests.marks import some_slow
from tests.parity.harness import check, costed, planned
from tests.parity.turns import TURNS

FAMILIES = ["mixtral", *models.EXPERTS]
PLANS = [
    "m2/dp2-tp2", "m2/dp2", "pp2/m2/1f1b/dp1", "m2/dp2-zero1", "m1/dp2-zero2", "m1/dp2-zero3", "m1/dp1-recompute",
    "m1/dp1-recompute=selective", "m1/tp2", "m1/tp2+sp", "m1/cp2", "m1/ulysses2", "m1/dp2-tp2",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("family", FAMILIES)
def test_sorted_tokens(family: str, plan: str) -> None:
    """In single precision: torch's own product of groups knows no doubles."""
    check(f"{family}-grouped_mm-float32", plan)


@pytest.mark.slow
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["batched_mm", "eager"])
def test_every_token_by_itself(kind: str, family: str, plan: str) -> None:
    check(f"{family}-{kind}", plan)


@pytest.mark.parametrize(
    ("name", "plan"),
    some_slow(
        [("added rows", "m1/dp2")],
        [(name, plan) for name in TURNS for plan in ("m1/dp2", "m1/ep2", "m1/tp2")],
    ),
)
def test_loops_written_by_hand(name: str, plan: str) -> None:
    check(f"turns: {name}", plan)


@pytest.mark.one_in(4)
@pytest.mark.parametrize("name", TURNS)
def test_turns_are_one_only_where_rows_are_by_themselves(name: str) -> None:
    program, _ = costed(f"turns: {name}")
    ops = [op.name for layer in program.all_layers for op in program.class_of[layer.cls].graph.ops]
    assert ("grouped_linear" in ops) == (name in ("plain", "added rows", "listed"))


@pytest.mark.slow
@pytest.mark.parametrize("plan", ["m1/dp2", "m2/dp2", "pp2/m2/gpipe/dp1", "m1/tp2", "m2/dp2-zero3"])
def test_balance_loss(plan: str) -> None:
    """It is a product of means over all samples, which the epilogue makes."""
    check("mixtral-balanced", plan)


@pytest.mark.slow
def test_balance_loss_is_not_taken_for_a_sum() -> None:
    with pytest.raises(PlanError, match="gpipe"):
        planned("mixtral-balanced", "pp2/m2/1f1b/dp1", 2)


@pytest.mark.parametrize(
    "name", some_slow(["mixtral"], ["mixtral-eager", "mixtral-grouped_mm-float32", "phimoe-batched_mm"])
)
def test_experts_are_one_op(name: str) -> None:
    """Two products for each layer with experts, and nothing left of how the model has them."""
    program, _ = costed(name)
    names = [op.name for layer in program.all_layers for op in program.class_of[layer.cls].graph.ops]
    assert names.count("grouped_linear") == 4
    assert not {"_grouped_mm", "bmm", "one_hot", "sort"}.intersection(names)
