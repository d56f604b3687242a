"""Functions with a backward of their own: it is what runs, under every kind of plan."""

from __future__ import annotations

import pytest

from galvatron.errors import PlanError
from galvatron.ir.planned import PlanShorthand
from tests.marks import some_slow
from tests.parity.functions import FUNCTIONS
from tests.parity.harness import check, planned

PLANS = [
    "m2/dp2", "m1/tp2", "pp2/m2/1f1b/dp1", "m1/tp2+sp", "m2/dp2-zero3", "m2/dp1-recompute", "m2/dp2-tp2",
    "m1/ulysses2", "m1/cp2", "m1/tp2-recompute=selective",
]  # fmt: skip
QUICK = ["m2/dp2", "m1/tp2"]


@pytest.mark.parametrize("plan", some_slow(QUICK, PLANS))
@pytest.mark.parametrize("function", FUNCTIONS)
def test_function_equals_eager(function: str, plan: str) -> None:
    if function == "damped" and "m1/" not in plan:
        with pytest.raises(
            PlanError, match=r"galvatron.register_rule\('galvatron_parity::damped', .*use 1 micro-batch"
        ):
            planned(f"function: {function}", plan, PlanShorthand.parse(plan).world_size)
    else:
        check(f"function: {function}", plan)
