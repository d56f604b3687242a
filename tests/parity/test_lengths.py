"""Batches of other lengths than the example's: one capture, equal to eager PyTorch for each of them."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from galvatron.compiled import BatchReader
from galvatron.errors import PlanError
from galvatron.ir.text import print_program
from tests.marks import some_slow
from tests.parity.harness import BATCH_SIZE, check_program, costed, planned, subject
from tests.parity.lengths import LENGTHS, LENGTHS_TRIED, tokens

PLANS = {"dp2": 2, "m2/dp2": 2, "tp2": 2, "pp2/m4/1f1b/dp1": 2, "pp2/m2/gpipe/dp2-zero3": 4, "dp2-tp2-recompute": 4}
FAST = [("padded", "m2/dp2"), ("padded", "tp2"), ("padded", "pp2/m4/1f1b/dp1")]


@pytest.mark.parametrize(("model", "plan"), some_slow(FAST, [(model, plan) for model in LENGTHS for plan in PLANS]))
def test_equals_eager_at_every_length(model: str, plan: str) -> None:
    check_at(f"lengths: {model}", plan, PLANS[plan], LENGTHS_TRIED[:3])


SHARDED = {"m2/tp2+sp": 2, "ulysses2": 2, "cp2": 2, "pp2/m2/1f1b/cp2": 4, "m2/dp2-tp2+sp-zero3": 4}


@pytest.mark.parametrize(
    ("model", "plan"),
    some_slow([("padded", "m2/tp2+sp")], [(model, plan) for model in ("padded", "llama") for plan in SHARDED]),
)
def test_equals_eager_where_the_sequence_is_sharded(model: str, plan: str) -> None:
    lengths = [length for length in LENGTHS_TRIED if length % 4 == 0]
    check_at(f"lengths: {model}", plan, SHARDED[plan], lengths)


def check_at(name: str, plan: str, world: int, lengths: Sequence[int]) -> None:
    """Asserts that one program equals eager PyTorch on batches of these lengths."""
    program = planned(name, plan, world)
    for length in lengths:
        batch = subject(name).batch(BATCH_SIZE, LENGTHS_TRIED.index(length))
        assert batch["input_ids"].shape[1] == length
        check_program(name, program, batch)


def test_a_plan_says_which_lengths_it_takes() -> None:
    name = "lengths: padded"
    program = planned(name, "cp2", 2)
    (length,) = program.lengths
    assert str(length.sizes) == "from 3 to 24 by 4"
    assert "\nlength S = 12 from 3 to 24 by 4\n" in print_program(program)
    reader = BatchReader(subject(name).model, subject(name).batch(4, 0), program)
    assert reader.read(subject(name).batch(4, 2))["S"] == 16
    with pytest.raises(PlanError, match="shards the sequence into 4 pieces; pad S to what 4 divides"):
        reader.read(subject(name).batch(4, 1))
    with pytest.raises(PlanError, match="S must divide into 8 pieces, but it is 12 in the example batch"):
        planned(name, "cp4", 4)


def test_a_batch_with_other_lengths() -> None:
    name = "lengths: padded"
    batch = tokens(4, 0)
    reader = BatchReader(subject(name).model, batch, costed(name)[0])
    assert reader.read(tokens(4, 0, length=24))["S"] == 24
    with pytest.raises(PlanError, match="has 25 on dim 1: the program holds for S from 3 to 24"):
        reader.read(tokens(4, 0, length=25))
    with pytest.raises(PlanError, match="'labels' has 7 on dim 1, where other inputs have S = 12"):
        reader.read(batch | {"labels": tokens(4, 1)["labels"]})
    with pytest.raises(PlanError, match="only the number of samples B and S may change"):
        reader.read(batch | {"labels": batch["labels"][:, None]})


def test_the_program_says_for_which_lengths_it_holds() -> None:
    (length,) = costed("lengths: padded")[0].lengths
    assert (str(length), length.example, str(length.sizes)) == ("S", 12, "from 3 to 24")
