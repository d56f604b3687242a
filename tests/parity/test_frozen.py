"""Frozen parameters: cut like trained ones, and without what only training needs."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from galvatron.costs.estimate import estimate_plan
from galvatron.costs.objective import StageReport
from tests.marks import some_slow
from tests.parity import harness
from tests.parity.test_memory import followed, on_cpu
from tests.parity.test_random_plans import COMMON, one_example
from tests.ranks import run_ranks

MODELS = ["adapted", "adapted-at-the-end", "head-only", "fine-tuned", "weighted"]
PLANS = [
    "m2/dp2-zero3", "m2/tp2", "m2/tp2+sp-recompute", "m2/dp2-tp2-zero3", "m2/dp4-zero3-recompute=selective",
    "m2/cp2-dp2-zero3", "m2/ulysses2-zero3", "pp2/m4/1f1b/dp2-zero3", "pp2/m4/zbv/dp1", "pp2/m4/interleaved2/tp2",
    "m2/dp2-zero2", "pp2/m4/gpipe/dp2-zero3-recompute",
]  # fmt: skip


@pytest.mark.parametrize(
    ("model", "plan"),
    some_slow([("adapted", "m2/dp2-zero3"), ("adapted", "m2/tp2")], [(m, p) for m in MODELS[:3] for p in PLANS]),
)
def test_equals_eager(model: str, plan: str) -> None:
    harness.check(model, plan)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@settings(max_examples=60, phases=(Phase.generate,), **COMMON)
@given(st.data())
def test_random_plans_equal_eager(data: st.DataObject) -> None:
    one_example(data, MODELS)


@cache
def measured(plan: str) -> tuple[int, int, StageReport]:
    """As `followed`, and what the program states."""
    program = on_cpu(harness.planned("adapted-64", plan, 2))
    assert program.plan is not None
    batch = harness.subject("adapted-64").batch(harness.BATCH_SIZE, 1)
    kept, peak = run_ranks(followed, 2, harness.job_of("adapted-64", program), batch, timeout=120)[0]
    return kept, peak, estimate_plan(program, program.plan)[1][0]


MEASURED = ["m2/dp2", "m2/tp2", "m2/dp2-zero2", "m2/dp2-zero3", "m2/dp2-zero3-recompute"]


@pytest.mark.parametrize("plan", some_slow(["m2/dp2-zero3"], MEASURED))
def test_a_rank_keeps_between_steps_what_the_program_states(plan: str) -> None:
    kept, peak, stated = measured(plan)
    assert kept == pytest.approx(stated.state_bytes, rel=0.02)
    assert peak <= 1.02 * stated.peak_bytes
