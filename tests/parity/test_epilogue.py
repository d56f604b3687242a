"""Losses that couple samples: their ends run once per step on all micro-batches, and equal eager PyTorch."""

from __future__ import annotations

import pytest

from galvatron.errors import PlanError
from tests.parity.harness import check, layer_count, planned

PLANS = ["m4/dp1", "m4/dp2-tp2", "m2/tp4+sp", "m2/ulysses4", "m2/cp4", "pp2/m4/gpipe/dp2", "pp4/m4/gpipe/dp1"]
PLANS += ["m4/dp4-zero3-recompute", "m4/dp2-zero2", "m1/dp4", "pp2/m1/1f1b/tp2", "pp2/m2/gpipe/tp2+sp-zero1"]
FAST = {("towers", "m4/dp2-tp2"), ("towers", "pp2/m4/gpipe/dp2"), ("towers", "m4/dp4-zero3-recompute")}
FAST |= {
    ("balanced", "m4/dp2-tp2"),
    ("balanced", "pp2/m4/gpipe/dp2"),
    ("views", "m4/dp2-tp2"),
    ("views", "m2/ulysses4"),
}
CASES = [
    pytest.param(model, plan, marks=() if (model, plan) in FAST else pytest.mark.slow)
    for model in ("towers", "views", "balanced")
    for plan in PLANS
    if model != "views" or not any(role in plan for role in ("+sp", "ulysses", "cp"))  # two views are no sequence
]


@pytest.mark.parametrize(("model", "plan"), CASES)
def test_equals_eager(model: str, plan: str) -> None:
    check(model, plan)


@pytest.mark.parametrize("model", ["towers", pytest.param("balanced", marks=pytest.mark.slow)])
def test_layers_of_different_strategies(model: str) -> None:
    """The samples of a micro-batch are in the same order whatever the degrees of data parallelism around them."""
    count = layer_count(model)
    cycle = ["dp4", "dp2-tp2", "tp2-dp2", "dp1-tp4+sp"]
    strategies = [cycle[i % len(cycle)] for i in range(count - 1)]
    check(model, [[*strategies, "dp2-tp2"]], schedule="gpipe")
    check(model, [[*strategies, "dp4-zero3"]], schedule="gpipe", micro_batches=2)


def test_terms_without_samples_count_once() -> None:
    for plan in ("m4/dp2-tp2", "pp2/m4/1f1b/dp2-zero2"):
        check("penalised", plan)


@pytest.mark.slow
@pytest.mark.parametrize("plan", ["m1/dp4", "m2/tp4+sp", "pp2/m4/interleaved2/dp2", "pp2/m4/zbv/tp2", "m4/dp4-zero3"])
def test_terms_without_samples_under_every_schedule(plan: str) -> None:
    check("penalised", plan)


def test_a_schedule_that_cannot_wait_is_refused_at_the_line() -> None:
    with pytest.raises(PlanError, match=r"needs the results of all micro-batches; use schedule gpipe.*models\.py:\d+"):
        planned("towers", "pp2/m4/1f1b/dp2")
