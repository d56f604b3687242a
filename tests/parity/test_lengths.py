"""Batches of other lengths than the example's: one capture, equal to eager PyTorch for each of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from galvatron.batches import BatchReader
from galvatron.errors import CaptureError, PlanError, VerifyError
from galvatron.ir.capture import capture_graph
from galvatron.ir.text import parse_program, print_program
from galvatron.ir.verify import verify
from tests.marks import some_slow
from tests.parity.harness import BATCH_SIZE, captured, check_program, costed, planned, subject
from tests.parity.lengths import LENGTHS, LENGTHS_TRIED, tokens

PLANS = {"dp2": 2, "m2/dp2": 2, "tp2": 2, "pp2/m4/1f1b/dp1": 2, "pp2/m2/gpipe/dp2-zero3": 4, "dp2-tp2-recompute": 4}
FAST = [("padded", "m2/dp2"), ("padded", "tp2"), ("padded", "pp2/m4/1f1b/dp1")]


@pytest.mark.one_in(2)
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
    with pytest.raises(PlanError, match="has 1 on dim 1: .* S from 3 to 24, and none does for fewer than 2; pad it"):
        reader.read(tokens(4, 0, length=1))
    with pytest.raises(PlanError, match="'labels' has 7 on dim 1, where other inputs have S = 12"):
        reader.read(batch | {"labels": tokens(4, 1)["labels"]})
    with pytest.raises(PlanError, match="only the number of samples B and S may change"):
        reader.read(batch | {"labels": batch["labels"][:, None]})


def test_the_program_says_for_which_lengths_it_holds() -> None:
    (length,) = costed("lengths: padded")[0].lengths
    assert (str(length), length.example, str(length.sizes)) == ("S", 12, "from 3 to 24")


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("from 3 to 24", "from 3 to 100", "aten.slice.Tensor"),
        ("from 3 to 24", "from 1 to 24", "traced for lengths of at least 2"),
        ("from 3 to 24", "from 24 to 24", "12 in the example, which is outside of from 24 to 24"),
        ("%labels         : i64[B, S]", "%labels         : i64[B, 2*S]", "a length is the size of a dimension"),
        ("[S, S]", "[S, 12]", "%"),
    ],
)
def test_a_file_with_strange_lengths_is_refused(before: str, after: str, message: str) -> None:
    text = print_program(captured("lengths: padded").program)
    assert before in text
    with pytest.raises(VerifyError, match=message):
        verify(parse_program(text.replace(before, after, 1)))


FIXED = {
    "plain": (lambda h, n: h * math.exp(n), r"math.exp takes a plain number and fixes the size S at 12"),
    "branch": (lambda h, n: h * 2 if n % 3 == 0 else h, r"the model works only for sizes S with"),
    "loop": (lambda h, n: torch.stack(list(h.unbind(1)), 1), r"the model fixes the size S at 12"),
}


class Net(nn.Module):
    def __init__(self, then: Callable[[Tensor, int], Tensor]) -> None:
        super().__init__()
        self.linear, self.then = nn.Linear(4, 4), then

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return (self.then(self.linear(x), x.shape[1]) * y.mean()).sum()


@pytest.mark.parametrize("name", FIXED)
def test_a_model_that_fixes_a_length_is_refused_at_its_line(name: str) -> None:
    then, message = FIXED[name]
    with pytest.raises(CaptureError, match=f"test_lengths.*lambda.*{message}"):
        capture_graph(Net(then), {"x": torch.randn(4, 12, 4), "y": torch.randn(4, 12)}, dynamic={"x": {1: "S"}})


def test_a_branch_on_several_sizes_is_refused() -> None:
    """Also one that only large batches of long samples would take."""

    def then(h: Tensor, n: int) -> Tensor:
        return h * 2 if h.shape[0] * n > 10_000 else h

    with pytest.raises(CaptureError, match="the model works only where"):
        capture_graph(Net(then), {"x": torch.randn(4, 12, 4), "y": torch.randn(4, 12)}, dynamic={"x": {1: "S"}})


@pytest.mark.parametrize(
    ("dynamic", "message"),
    [
        ({"x": {1: "B"}}, "a size is named by an identifier such as 'S', other than B, b, m, n"),
        ({"x": {3: "S"}}, "names dim 3 of a tensor with 3 dimensions"),
        ({"x": {1: "S", -2: "T"}}, "names one dimension twice, as 1 and as -2"),
        ({"x": {1: "S"}, "y": {0: "S"}}, "S is 12, but 'y' has 4 on dim 0"),
        ({"x": {0: "S"}, "y": {0: "S"}}, "no tensor with a batch dimension|fixes the size of every input"),
        ({"x": 1}, "a mapping such as"),
    ],
)
def test_lengths_that_mean_nothing(dynamic: Any, message: str) -> None:
    with pytest.raises(CaptureError, match=message):
        capture_graph(Net(lambda h, n: h), {"x": torch.randn(4, 12, 4), "y": torch.randn(4, 12)}, dynamic=dynamic)


def test_a_range_of_lengths_follows_from_a_branch() -> None:
    batch = {"x": torch.randn(4, 12, 4), "y": torch.randn(4, 12)}
    net = Net(lambda h, n: h * 2 if n >= 8 else h)
    (length,) = capture_graph(net, batch, dynamic={"x": {1: "S"}}).program.lengths
    assert str(length.sizes) == "from 8"


@pytest.mark.slow
def test_lengths_are_found_when_asked() -> None:
    """One for inputs whose sizes the model relates, as if it had been named."""
    case = LENGTHS["padded"]()
    program = captured("lengths: padded").program
    found = capture_graph(case.model.double(), case.batch(4, 0), dynamic=True).program
    assert replace(found, batch_size=BATCH_SIZE) == program


class Cut(nn.Module):
    """Takes of a mask what it needs, which is a branch on two sizes where they are traced apart."""

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        if mask.shape[1] > x.shape[1]:
            mask = mask[:, : x.shape[1]]
        return (x.mean(-1).mean(1) * mask.mean(1)).mean()


def test_sizes_that_the_model_compares_are_taken_for_one() -> None:
    batch = {"x": torch.randn(4, 12, 5), "mask": torch.randn(4, 12)}
    program = capture_graph(Cut(), batch, dynamic=True).program
    assert " ".join(str(value.type) for value in program.inputs) == "f32[B, S, S2] f32[B, S]"


@pytest.mark.parametrize(
    ("then", "dynamic", "shapes"),
    [
        (lambda h, n: h, True, "[B, S, 4] [B, S2]"),
        (lambda h, n: h, {"x": True}, "[B, S, 4] [B, 12]"),
        (lambda h, n: h, {"x": {1: "T"}, "y": True}, "[B, T, 4] [B, S]"),
        (FIXED["loop"][0], True, "[B, 12, 4] [B, S]"),
        (FIXED["branch"][0], True, "[B, 12, 4] [B, S2]"),
    ],
)
def test_what_the_model_fixes_is_not_found(then: Any, dynamic: Any, shapes: str) -> None:
    batch = {"x": torch.randn(4, 12, 4), "y": torch.randn(4, 12)}
    program = capture_graph(Net(then), batch, dynamic=dynamic).program
    assert " ".join(str(value.type).removeprefix("f32") for value in program.inputs) == shapes
