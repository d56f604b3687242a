"""Gradients that forward computes itself, and those of the loss through them, under every kind of plan."""

from __future__ import annotations

import pytest

from galvatron.errors import PlanError
from galvatron.ir.planned import PlanShorthand
from tests.marks import some_slow
from tests.parity.derivatives import DERIVATIVES
from tests.parity.harness import check, planned

PLANS = ["m2/dp2", "m1/dp2", "m1/tp2", "pp2/m1/gpipe/dp1", "m1/dp2-zero3-recompute", "pp2/m2/1f1b/dp1"]
FAST = [("penalty", "m2/dp2"), ("penalty", "m1/tp2"), ("equation", "m2/dp2"), ("step", "m1/dp2")]
ALL = [(name, plan) for name in DERIVATIVES for plan in PLANS]


@pytest.mark.one_in(2)
@pytest.mark.parametrize(("model", "plan"), some_slow(FAST, ALL))
def test_equals_eager(model: str, plan: str) -> None:
    if model == "step" and "m2/" in plan:  # its inner loss is one of all samples
        with pytest.raises(PlanError, match="a sum over the batch, of which a micro-batch knows only its own part"):
            planned(f"derivative: {model}", plan, PlanShorthand.parse(plan).world_size)
    else:
        check(f"derivative: {model}", plan)
