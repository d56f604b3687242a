"""State that forward writes: under any plan it is after three steps what it is on one device, and the loss is."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from torch import Tensor

from galvatron import runtime as rt
from galvatron.errors import PlanError
from galvatron.ir.planned import PlanShorthand
from tests.models import precise
from tests.parity.harness import Job, executor, job_of, planned, subject
from tests.parity.states import STATES
from tests.parity.subjects import Batch
from tests.parity.training import assert_same_training, batches, train
from tests.ranks import run_ranks

PLANS = ("m1/dp2", "m1/tp2", "m4/dp1", "m2/dp2-zero3", "pp2/m4/1f1b/dp1")
MORE = ("m1/tp2+sp", "m1/dp2-recompute", "m2/ulysses2-recompute", "m2/dp2-zero1-recompute=selective",
        "m1/dp2-recompute=selective", "pp2/m1/dp1", "pp2/m4/gpipe/dp1-recompute")  # fmt: skip
COUPLED = {"batch-norm", "residual"}
"""Several micro-batches are not the whole batch."""


def holds(state: str, plan: str) -> None:
    """It is equal, or the plan is refused for the right reason."""
    name, shorthand = f"state: {state}", PlanShorthand.parse(plan)
    try:
        job = job_of(name, planned(name, plan, shorthand.world_size))
    except PlanError as error:
        assert shorthand.micro_batches > 1 and state in COUPLED, error
        assert re.search(r"batch_norm.* across the samples .*; use 1 micro-batch", str(error))
        return
    assert_same_training(name, plan, run_ranks(train, shorthand.world_size, job, batches(name)))


@pytest.mark.parametrize("plan", PLANS[:4])
def test_counts(plan: str) -> None:
    holds("counts", plan)


def test_a_part_of_a_weight_outlasts_its_bucket() -> None:
    holds("shown", "m2/dp2-zero3")


def test_a_name_that_stages_have_a_use_for() -> None:
    holds("warmed", "m2/dp2")


@pytest.mark.slow
@pytest.mark.parametrize("plan", PLANS + MORE)
@pytest.mark.parametrize("state", STATES)
def test_every_state(state: str, plan: str) -> None:
    holds(state, plan)


def evaluate(world: rt.World, job: Job, steps: list[Batch]) -> tuple[float, dict[str, Tensor], bool]:
    """On a rank: the loss of an evaluation after two steps without an optimizer, the state, and whether evaluating left
    it as it was."""
    program = executor(world, job)
    for batch in steps[:2]:
        program.forward_backward(batch)
    before = program.full_state_dict()
    loss = float(program.eval_step(steps[2]))
    after = program.full_state_dict()
    program.load_full_state_dict(before)
    again = program.full_state_dict()
    same = all(torch.equal(after[name], value) and torch.equal(again[name], value) for name, value in before.items())
    return loss, before, same


@pytest.mark.parametrize("plan", ["m1/dp2", "m1/tp2"])
@pytest.mark.parametrize("state", ["residual", "counts"])
def test_evaluation_reads_what_steps_have_written_and_writes_nothing(state: str, plan: str) -> None:
    name = f"state: {state}"
    steps, case = batches(name), copy.deepcopy(subject(name))
    job = job_of(name, planned(name, plan, 2))
    with precise(case.model), torch.no_grad():
        for batch in steps[:2]:
            case.loss(batch)
        case.model.eval()
        # The one that counts does so in evaluation too.
        expected = float(copy.deepcopy(case).loss(steps[2]))
    for loss, state_dict, same in run_ranks(evaluate, 2, job, steps):
        assert same and abs(loss - expected) <= 1e-9 * abs(expected)
        for key, value in case.model.state_dict().items():
            torch.testing.assert_close(state_dict[key], value)
