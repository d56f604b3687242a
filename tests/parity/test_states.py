"""State that forward writes: under any plan it is after three steps what it is on one device, and the loss is."""

from __future__ import annotations

import pytest

from galvatron.errors import PlanError
from galvatron.ir.planned import PlanShorthand
from tests.parity.harness import job_of, planned
from tests.parity.states import STATES
from tests.parity.training import assert_same_training, batches, train
from tests.ranks import run_ranks

PLANS = ("m1/dp2", "m1/tp2", "m4/dp1", "m2/dp2-zero3", "pp2/m4/1f1b/dp1")
MORE = ("m1/tp2+sp", "m1/dp2-recompute", "m2/ulysses2-recompute", "m2/dp2-zero1-recompute=selective",
        "m1/dp2-recompute=selective", "pp2/m1/dp1", "pp2/m4/gpipe/dp1-recompute")  # fmt: skip
COUPLED = {"batch-norm", "residual"}
"""Several micro-batches are not the whole batch."""
ONE_STAGE = {"balanced", "codebook"}
"""What is written at the end of a step is read at its beginning."""


def holds(state: str, plan: str) -> None:
    name, shorthand = f"state: {state}", PlanShorthand.parse(plan)
    if state in COUPLED and shorthand.micro_batches > 1:
        with pytest.raises(PlanError, match=r"\.py:\d+: `.*`: .*batch_norm.* across the samples .*; use 1 micro-batch"):
            planned(name, plan, 2)
        return
    if state in ONE_STAGE and shorthand.pipeline_degree > 1:
        with pytest.raises(PlanError, match="which forward writes in stage 1: choose a plan|begins backwards before"):
            job_of(name, planned(name, plan, 2))
        return
    job = job_of(name, planned(name, plan, shorthand.world_size))
    assert_same_training(name, plan, run_ranks(train, shorthand.world_size, job, batches(name)))


@pytest.mark.parametrize("plan", PLANS[:4])
def test_counts(plan: str) -> None:
    holds("counts", plan)


@pytest.mark.slow
@pytest.mark.parametrize("plan", PLANS + MORE)
@pytest.mark.parametrize("state", STATES)
def test_every_state(state: str, plan: str) -> None:
    holds(state, plan)
