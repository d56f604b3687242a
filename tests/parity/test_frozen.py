"""Frozen parameters: cut like trained ones, and without what only training needs."""

from __future__ import annotations

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from galvatron.costs.estimate import estimate_plan
from tests.marks import some_slow
from tests.parity import adapters, harness
from tests.parity.test_memory import TOLERANCE, errors_of, followed, on_cpu
from tests.parity.test_random_plans import COMMON, one_example
from tests.ranks import run_ranks

LITTLE = [f"llama-{kind}" for kind in adapters.LITTLE]
MODELS = ["adapted", "adapted-at-the-end", "head-only", "fine-tuned", "weighted"]
PLANS = [
    "m2/dp2-zero3", "m2/tp2", "m2/tp2+sp-recompute", "m2/dp2-tp2-zero3", "m2/dp4-zero3-recompute=selective",
    "m2/cp2-dp2-zero3", "m2/ulysses2-zero3", "pp2/m4/1f1b/dp2-zero3", "pp2/m4/zbv/dp1", "pp2/m4/interleaved2/tp2",
    "m2/dp2-zero2", "pp2/m4/gpipe/dp2-zero3-recompute",
]  # fmt: skip


@pytest.mark.parametrize(
    ("model", "plan"),
    some_slow(
        [("adapted", "m2/dp2-zero3"), ("adapted", "m2/tp2")], [(m, p) for m in (*MODELS[:4], *LITTLE) for p in PLANS]
    ),
)
def test_equals_eager(model: str, plan: str) -> None:
    harness.check(model, plan)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@settings(max_examples=60, phases=(Phase.generate,), **COMMON)
@given(st.data())
def test_random_plans_equal_eager(data: st.DataObject) -> None:
    one_example(data, MODELS)


PEAKS = [
    (model, plan, precision)
    for model in LITTLE
    for plan, precision in (
        ("m2/dp2", None),
        ("m2/dp2", "bf16"),
        ("m2/tp2", None),
        ("m2/tp2+sp", "bf16"),
        ("m2/dp2-zero3", None),
        ("m2/dp2-zero3", "bf16"),
        ("pp2/m4/1f1b/dp1", None),
        ("m2/dp2-recompute=selective", None),
        ("m2/dp2-recompute", None),
    )
]


ROUGHLY = {
    ("llama-head-alone", "m2/dp2-zero3"): 0.06,
    ("llama-head-alone", "pp2/m4/1f1b/dp1"): 0.06,
    ("llama-without-bottom", "m2/tp2+sp"): 0.03,
}
"""Where messages are what is left: sums of gradients beside the next forward, which is where most is in use if little
of a model has a backward, and what goes between stages in one direction only."""


@pytest.mark.slow
@pytest.mark.parametrize(("model", "plan", "precision"), PEAKS)
def test_a_rank_takes_the_memory_that_is_predicted(model: str, plan: str, precision: str | None) -> None:
    errors = errors_of(model, plan, precision, 2)
    assert max(map(abs, errors)) <= ROUGHLY.get((model, plan), TOLERANCE), errors


@pytest.mark.slow
@pytest.mark.parametrize("plan", ["m2/dp2", "m2/tp2", "m2/dp2-zero2", "m2/dp2-zero3"])
def test_a_rank_keeps_between_steps_what_the_program_states(plan: str) -> None:
    program = on_cpu(harness.planned("llama-low-rank", plan, 2))
    assert program.plan is not None
    batch = harness.subject("llama-low-rank").batch(harness.BATCH_SIZE, 1)
    kept, _ = run_ranks(followed, 2, harness.job_of("llama-low-rank", program), batch, timeout=120)[0]
    assert kept == pytest.approx(estimate_plan(program, program.plan)[1][0].state_bytes, rel=TOLERANCE)
