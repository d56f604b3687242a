"""Functions with a backward of their own: it is what runs, under every kind of plan."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor

import galvatron
from galvatron import runtime as rt
from galvatron.errors import PlanError
from galvatron.ir.planned import PlanShorthand
from tests.marks import some_slow
from tests.parity.functions import FUNCTIONS
from tests.parity.harness import BATCH_SIZE, check, eager, planned, relative_errors, subject
from tests.ranks import run_ranks

PLANS = [
    "m2/dp2", "m1/tp2", "pp2/m2/gpipe/dp1", "m1/tp2+sp", "m2/dp2-zero3", "m2/dp1-recompute", "m2/dp2-tp2",
    "m1/ulysses2", "m1/cp2", "m1/tp2-recompute=selective",
]  # fmt: skip
QUICK = ["m2/dp2", "m1/tp2"]


@pytest.mark.one_in(12)
@pytest.mark.parametrize("plan", some_slow(QUICK, PLANS))
@pytest.mark.parametrize("function", FUNCTIONS)
def test_function_equals_eager(function: str, plan: str) -> None:
    if function == "centred" and "m1/" not in plan:
        with pytest.raises(PlanError, match="Centred works across the samples of the batch; use 1 micro-batch"):
            planned(f"function: {function}", plan, PlanShorthand.parse(plan).world_size)
    elif function in ("clamped-weight", "limited-weight") and "m1/" not in plan:
        with pytest.raises(PlanError, match="has a backward that is not known to be linear.*use 1 micro"):
            planned(f"function: {function}", plan, PlanShorthand.parse(plan).world_size)
    elif function == "damped" and "m1/" not in plan:
        with pytest.raises(
            PlanError, match=r"galvatron.register_rule\('galvatron_parity::damped', .*use 1 micro-batch"
        ):
            planned(f"function: {function}", plan, PlanShorthand.parse(plan).world_size)
    else:
        check(f"function: {function}", plan)


@pytest.mark.parametrize("plan", ["m1/dp2", "m1/ulysses2"])
@pytest.mark.parametrize("function", ["clamped-weight", "limited-weight"])
def test_a_backward_that_is_not_linear_is_given_all_of_the_gradient(function: str, plan: str) -> None:
    check(f"function: {function}", plan)


def compiled(world: rt.World, name: str, batch: dict[str, Any]) -> tuple[float, dict[str, Tensor]]:
    program = galvatron.compile(subject(name).model, batch, plan="m1/dp2")
    loss = program.forward_backward(batch)
    return float(loss), program.full_gradients()


@pytest.mark.parametrize("function", ["scaled", "damped", "weighed"])
def test_every_rank_reads_the_program_of_rank_0(function: str) -> None:
    name = f"function: {function}"
    batch = subject(name).batch(BATCH_SIZE, 1)
    expected = eager(name, batch)
    for loss, gradients in run_ranks(compiled, 2, name, batch):
        assert all(error < 1e-9 for error in relative_errors(loss, gradients, expected).values())
