"""Losses that look across the samples of a batch, under every kind of plan: what eager computes, or a line that says
why not."""

from __future__ import annotations

import pytest

from galvatron.errors import PlanError
from galvatron.ir.planned import PlanShorthand
from tests.parity.harness import check, planned
from tests.parity.situations import SITUATIONS

PLANS = ("m1/dp2", "m1/tp2", "m1/tp2+sp", "m1/dp2-zero3", "pp2/m1/dp1", "m2/dp1", "m2/dp2", "pp2/m4/gpipe/dp1")
QUICK = ("m2/dp2", "m1/tp2+sp")
REFUSED = {"norm_of_the_batch"}
"""Coupled before any layer, so that nothing could run once per micro-batch."""


def holds(situation: str, plan: str) -> None:
    name = f"situation: {situation}"
    if situation in REFUSED and "m1/" not in plan:
        with pytest.raises(PlanError, match=r"\.py:\d+.*`.*use 1 micro-batch"):
            planned(name, plan, PlanShorthand.parse(plan).world_size)
    else:
        check(name, plan)


@pytest.mark.parametrize("plan", QUICK)
@pytest.mark.parametrize("situation", ["balance_of_experts", "contrast_with_targets", "penalty_on_weights"])
def test_situation(situation: str, plan: str) -> None:
    holds(situation, plan)


@pytest.mark.slow
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("situation", SITUATIONS)
def test_every_situation(situation: str, plan: str) -> None:
    holds(situation, plan)
