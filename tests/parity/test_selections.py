"""Rows that a mask selects: under any plan what eager PyTorch computes."""

from __future__ import annotations

import pytest

from tests.marks import some_slow
from tests.parity.harness import check, subject
from tests.parity.selections import SELECTIONS

PLANS = ["m2/dp2", "m1/tp2", "pp2/m2/1f1b/dp1", "m2/dp2-zero3", "m1/tp2+sp", "m1/ulysses2", "pp2/m4/gpipe/dp1-tp2"]
COUPLED = {"mean_of_logarithms"}
"""Divided by how many are selected, which depends on weights: no micro-batch knows that of the others."""


@pytest.mark.one_in(6)
@pytest.mark.parametrize("plan", some_slow(PLANS[:1], PLANS))
@pytest.mark.parametrize("selection", SELECTIONS)
def test_selection(selection: str, plan: str) -> None:
    check(f"selection: {selection}", plan if selection not in COUPLED else plan.replace("1f1b", "gpipe"))


def test_where_nothing_is_selected() -> None:
    """In some micro-batches and on some ranks, and in all of the batch."""
    name = "selection: head_of_labelled"
    batch = subject(name).batch(16, 3)
    batch["labels"][4:] = -100
    batch["labels"][0, 0] = 1
    check(name, "m4/dp2", batch)
