"""Experts in each implementation that can be traced: what eager PyTorch computes, as replicated layers.

One that sorts the tokens of the batch (`grouped_mm`) runs whole, on the whole batch: several micro-batches are refused.
"""

from __future__ import annotations

import pytest

from galvatron.errors import PlanError
from tests import models
from tests.marks import some_slow
from tests.parity.harness import check, planned

FAMILIES = ["mixtral", *models.EXPERTS]
PLANS = ["m1/dp2", "pp2/m1/gpipe/dp1", "m1/dp2-zero3", "m1/dp1-recompute", "m1/tp2", "m1/dp2-tp2"]


@pytest.mark.one_in(2)
@pytest.mark.parametrize("plan", some_slow(PLANS[:1], PLANS))
@pytest.mark.parametrize("family", some_slow(["qwen3-moe"], FAMILIES))
def test_sorted_tokens(family: str, plan: str) -> None:
    """In single precision: torch's own product of groups knows no doubles."""
    check(f"{family}-grouped_mm-float32", plan)


@pytest.mark.slow
@pytest.mark.parametrize("plan", [*PLANS, "m2/dp2", "pp2/m2/1f1b/dp1"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_token_by_itself(family: str, plan: str) -> None:
    check(f"{family}-batched_mm", plan)


def test_sorted_tokens_of_a_micro_batch_are_not_those_of_the_batch() -> None:
    with pytest.raises(PlanError, match=r"\.py:\d+: `.*use 1 micro-batch"):
        planned("qwen3-moe-grouped_mm-float32", "m2/dp1", 1)
