"""An edit that changes what a program computes is refused by the verifier, unless it makes another valid program."""

from __future__ import annotations

from functools import cache
from random import Random

import pytest

from galvatron.errors import GalvatronError, VerifyError
from galvatron.ir.program import Form, Program
from galvatron.ir.verify import verify
from galvatron.passes import FRONT_END, LOWERING
from galvatron.passes.pipeline import Pipeline
from tests.ir.edits import Impossible
from tests.ir.mutations import KINDS
from tests.parity import harness
from tests.parity.training import assert_same_training, batches, train
from tests.ranks import run_ranks

PLANS = ["pp2/m2/1f1b/dp1-tp2", "m2/dp2-tp2", "m2/tp2+sp-dp2", "m2/cp2-tp2", "m2/ulysses2-dp2", "m2/tp4"]
SUBJECTS = ["gpt", "llama-tied-97", "state: counts", "gpt2-dropout", "lengths: padded"]
TRIES = 12
WORLD_SIZE = 4


@cache
def program(name: str, form: Form, plan: str) -> Program:
    """A model in a form, under a plan from the planned form on."""
    found = harness.captured(name).program
    if form is not Form.CAPTURED:
        found = Pipeline.of(FRONT_END).run(found)
    if form > Form.CLUSTERED:
        found = harness.planned(name, plan, WORLD_SIZE)
    if form >= Form.SHARDED:
        # Sharded, and with the redistributions: without them, an edit of what a layer gives would be made good.
        found = Pipeline.of(LOWERING if form is Form.STAGED else LOWERING[:2]).run(found)
    verify(found)
    return found


def job(name: str, local: Program) -> harness.Job:
    """What is generated from a sharded or staged program, which is verified when it is staged."""
    return harness.job_of_staged(name, local if local.form is Form.STAGED else Pipeline.of(LOWERING[2:]).run(local))


@cache
def own_job(name: str, form: Form, plan: str) -> harness.Job:
    return job(name, program(name, form, plan))


def check(name: str, form: Form, plan: str, kind: str, seed: int) -> bool:
    """Whether there was something to edit; asserts that the edit was refused, or that what is generated is the same, or
    trains as the model does on one device."""
    original = program(name, form, plan)
    try:
        edited = KINDS[kind].edit(original, Random(seed))
    except Impossible:
        return False
    try:
        verify(edited)
    except VerifyError:
        return True
    what = f"{kind} with seed {seed} on {name} ({form}) under {plan}"
    assert form >= Form.SHARDED or KINDS[kind].valid, f"{what} was not refused"
    if form < Form.SHARDED:
        return True
    try:
        generated = job(name, edited)
    except GalvatronError:
        return True  # by a pass on the way, or in the form that it leaves
    if not KINDS[kind].valid and generated != own_job(name, form, plan):
        assert_same_training(name, what, run_ranks(train, WORLD_SIZE, generated, batches(name)))
    return True


def cases(name: str, plans: list[str]) -> list[tuple[str, Form, str]]:
    local = [(name, form, plan) for plan in plans for form in (Form.SHARDED, Form.STAGED)]
    return [(name, Form.CAPTURED, plans[0]), (name, Form.PLANNED, plans[0]), *local]


@pytest.mark.one_in(6)
@pytest.mark.parametrize("kind", KINDS)
def test_edits(kind: str) -> None:
    """A few edits of each kind in every form, of a small GPT or of what writes into its state, under two plans."""
    done = 0
    for name, form, plan in cases("state: counts" if "update" in kind else "gpt", PLANS[:2]):
        if KINDS[kind].first <= form <= KINDS[kind].last:
            done += sum(check(name, form, plan, kind, seed) for seed in range(TRIES // 3))
    assert done or kind in ("keyword-of-a-draw", "swap-outputs"), "no edit was possible"


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("name", SUBJECTS)
def test_many_edits(name: str, plan: str, kind: str) -> None:
    for _, form, _ in cases(name, [plan]):
        depends = form is not Form.CAPTURED or plan == PLANS[0]
        if depends and KINDS[kind].first <= form <= KINDS[kind].last:
            for seed in range(TRIES):
                check(name, form, plan, kind, seed)
