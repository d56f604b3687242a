"""Checks of a program: which of a model's own conditions become one, what they say, and what a file may not say."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from galvatron.errors import VerifyError
from galvatron.ir.capture import capture_graph
from galvatron.ir.interpreter import run_graph
from galvatron.ir.micro_batches import coupling
from galvatron.ir.program import Program
from galvatron.ir.text import parse_program, print_program
from galvatron.ir.verify import verify
from galvatron.passes import FRONT_END
from galvatron.passes.pipeline import Pipeline

Check = Callable[[Any, Tensor, Tensor], Any]
Condition = Callable[[Tensor, Tensor], Any]


class Net(nn.Module):
    """A linear map that asks for a condition on what it makes, and on a mask."""

    def __init__(self, check: Check) -> None:
        super().__init__()
        self.linear, self.check, self.strict = nn.Linear(4, 4), check, True

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        h = self.linear(x)
        self.check(self, h, mask)
        return (h.square() * mask.sum(-1, keepdim=True)).sum()


def batch() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {"x": torch.randn(6, 4), "mask": torch.ones(6, 3, dtype=torch.bool)}


def captured(check: Check) -> Program:
    torch.manual_seed(0)
    return Pipeline.of(FRONT_END).run(capture_graph(Net(check), batch()).program)


def refusing(condition: Condition) -> Check:
    def check(net: Any, h: Tensor, mask: Tensor) -> None:
        if condition(h, mask):
            raise ValueError("refused")

    return check


def requiring(condition: Condition) -> Check:
    def check(net: Any, h: Tensor, mask: Tensor) -> None:
        if not condition(h, mask):
            raise ValueError("refused")

    return check


def fails(program: Program, batch: dict[str, Tensor], state: dict[str, Tensor]) -> bool:
    """Whether a check of a program fails on a batch."""
    graph = program.required_graph
    found = run_graph(graph, {**batch, **state}, batch=len(batch["x"]))
    return any(bool(found[check.value].any()) for check in program.checks)


def _either(net: Any, h: Tensor, mask: Tensor) -> None:
    if net.strict and (h.max(-1).values.gt(1.5).any() or (h < -1.5).any()):
        raise ValueError("refused")


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    "check",
    [
        refusing(lambda h, mask: h.isnan().any()),
        requiring(lambda h, mask: h.isfinite().all()),
        requiring(lambda h, mask: (~mask.any(-1)).logical_not().all()),
        refusing(lambda h, mask: (h > 1.5).any() | (h < -1.5).any()),
        requiring(lambda h, mask: (h.max() < 1.5) & (h.amin() >= -1.5)),
        refusing(lambda h, mask: mask.sum(1).min() <= 0),
        refusing(lambda h, mask: mask.all(1).logical_not().any(dim=0)),
        refusing(lambda h, mask: (h > 1.5).any().float()),
        requiring(lambda h, mask: mask.all()),
        lambda net, h, mask: torch._assert(h.isfinite().all(), "not finite"),
        _either,
    ],
)
def test_a_check_fails_where_the_model_raises(check: Check) -> None:
    model = Net(check)
    program = capture_graph(model, batch()).program
    assert program.checks
    assert parse_program(print_program(program)) == program
    verify(program)
    for change in (_nothing, _no_number, _large, _masked):
        given = batch()
        change(**given)
        assert fails(program, given, dict(model.state_dict())) == _raises(model, given), change


def _raises(model: nn.Module, given: dict[str, Tensor]) -> bool:
    try:
        model(**given)
    except (ValueError, AssertionError):
        return True
    return False


def _nothing(x: Tensor, mask: Tensor) -> None: ...


def _no_number(x: Tensor, mask: Tensor) -> None:
    x[4, 1] = torch.nan


def _large(x: Tensor, mask: Tensor) -> None:
    x[2] = 40


def _masked(x: Tensor, mask: Tensor) -> None:
    mask[3] = False


def _several(net: Any, h: Tensor, mask: Tensor) -> None:
    if net.strict and not net.training and h.isnan().any():
        raise ValueError(f"of {net} and {h.shape[1] + 1}")
    what = "'numbers'"
    if net.strict and h.isnan().any():
        raise ValueError(f"of {h.shape[1] + 1} {what}")


def test_what_it_says() -> None:
    of_evaluation, check = captured(_several).checks
    assert "not net.training" in of_evaluation.says
    assert "test_checks.py:" in check.says and "`if net.strict and h.isnan().any():`" in check.says
    assert check.says.endswith(": ValueError: of {h.shape[1] + 1} 'numbers'")


def _caught(net: Any, h: Tensor, mask: Tensor) -> None:
    try:
        _several(net, h, mask)
    except ValueError:
        net.failed = True


def _first_of_two(net: Any, h: Tensor, mask: Tensor) -> None:
    if h.isnan().any() and net.strict:
        raise ValueError("refused")


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        if x.isnan().any():
            raise ValueError("refused")
        return 2 * x

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return 2 * gradients[0]


@pytest.mark.parametrize(
    "check",
    [
        _caught,
        _first_of_two,
        lambda net, h, mask: Doubled.apply(h),
        refusing(lambda h, mask: h.mean() > 3),
        refusing(lambda h, mask: h.max() > 3),
        refusing(lambda h, mask: (h[mask[:, 0]].cumsum(0) > 3).any()),
        refusing(lambda h, mask: h.isnan().any().item()),
    ],
)
def test_what_is_left_out(check: Check) -> None:
    with pytest.warns(UserWarning, match=r"test_checks.py:\d+: `if .* left out"):
        assert not captured(check).checks


@pytest.mark.parametrize(
    "check",
    [
        requiring(lambda h, mask: mask.any()),
        refusing(lambda h, mask: (mask & torch.ones_like(mask)).any()),
        lambda net, h, mask: torch.distributions.Normal(h.chunk(2, -1)[0], h.square()[:, :2], validate_args=True),
    ],
)
def test_what_is_checked_in_a_program_of_layers(check: Check) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = captured(check)
    assert found.checks and coupling(found) is None


@cache
def program() -> Program:
    return captured(refusing(lambda h, mask: h.isnan().any()))


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("nothing", "no layer computes %nothing, which the check"),
        ("mask", "no layer computes %mask"),
        ("sum_2", "%sum_2 is of f32, but the check"),
    ],
)
def test_a_stranger_may_not_check_what_is_no_truth_value(value: str, reason: str) -> None:
    text, before = print_program(program()), f"never %{program().checks[0].value}"
    assert before in text
    with pytest.raises(VerifyError, match=reason):
        verify(parse_program(text.replace(before, f"never %{value}")))
