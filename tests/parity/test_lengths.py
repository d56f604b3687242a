"""Batches of other lengths than the example's: one capture, equal to eager PyTorch for each of them."""

from __future__ import annotations

import pytest

from tests.marks import some_slow
from tests.parity.harness import BATCH_SIZE, check_program, costed, planned, subject
from tests.parity.lengths import LENGTHS, LENGTHS_TRIED

PLANS = {"dp2": 2, "m2/dp2": 2, "tp2": 2, "pp2/m4/1f1b/dp1": 2, "pp2/m2/gpipe/dp2-zero3": 4, "dp2-tp2-recompute": 4}
FAST = [("padded", "m2/dp2"), ("padded", "tp2"), ("padded", "pp2/m4/1f1b/dp1")]


@pytest.mark.parametrize(("model", "plan"), some_slow(FAST, [(model, plan) for model in LENGTHS for plan in PLANS]))
def test_equals_eager_at_every_length(model: str, plan: str) -> None:
    name = f"lengths: {model}"
    program = planned(name, plan, PLANS[plan])
    for seed in range(len(LENGTHS_TRIED)):
        check_program(name, program, subject(name).batch(BATCH_SIZE, seed))


def test_the_program_says_for_which_lengths_it_holds() -> None:
    (length,) = costed("lengths: padded")[0].lengths
    assert (str(length), length.example, str(length.sizes)) == ("S", 12, "from 3 to 24")
