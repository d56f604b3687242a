"""Branches on values of which both sides are captured, and those of which the line is named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from galvatron.errors import CaptureError
from galvatron.ir.capture import capture_graph
from galvatron.ir.program import Program
from galvatron.passes.frontend.normalize import Normalize
from tests import models

Forward = Callable[[Any, Tensor], Tensor]


class Net(nn.Module):
    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.linear, self.then, self.strict = nn.Linear(4, 4), forward, True

    def forward(self, x: Tensor) -> Tensor:
        return self.then(self, self.linear(x)).square().sum()


def library(net: Any, h: Tensor) -> Tensor:
    """As models write it that want to stay finite."""
    if net.training and not torch.isfinite(h).all():
        clamp_value = torch.finfo(h.dtype).max - 1000
        h = torch.clamp(h, min=-clamp_value, max=clamp_value)
    return torch.tanh(h)


def until_inf(net: Any, h: Tensor) -> Tensor:
    if net.strict and torch.isinf(h).any():
        greatest = torch.finfo(h.dtype).max
        h = h.clamp(-greatest, greatest)
    return torch.tanh(h)


def small(net: Any, h: Tensor) -> Tensor:
    for bound in (1.0, 0.5):
        if (h > 2 * bound).any():
            h = torch.clamp(h, max=bound)
            h = torch.nan_to_num(h, nan=bound)
    return h


def other(net: Any, h: Tensor) -> Tensor:
    if not (h.max() <= 1):
        h = torch.clamp(h, -1.0, 1.0)
    return h


def captured(forward: Forward) -> tuple[Program, Net]:
    torch.manual_seed(0)
    model = Net(forward).double()
    return capture_graph(model, {"x": torch.randn(6, 4, dtype=torch.float64)}).program, model


@pytest.mark.parametrize("forward", [library, until_inf, small, other])
def test_both_sides_are_captured(forward: Forward) -> None:
    program, model = captured(forward)
    for found in (program, Normalize().run(program)):
        for scale in (0.1, 1, 10, torch.inf):
            batch = {"x": torch.randn(5, 4, dtype=torch.float64).mul_(torch.tensor([1.0, 1, 1, scale]).double())}
            values = models.tensors_of(found, model, batch, {})
            actual = models.loss_and_gradients(models.run(found.required_graph, values, 5), model)
            expected = models.loss_and_gradients(model(**batch), model)
            for name, value in expected.items():
                torch.testing.assert_close(actual[name], value, rtol=1e-12, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("forward", [library, until_inf])
def test_what_changes_nothing_finite_needs_no_condition(forward: Forward) -> None:
    program, _ = captured(forward)
    names = [op.name for op in Normalize().run(program).required_graph.ops]
    assert "clamp" in names and not {"where", "all", "any"} & {*names}


def with_another_side(net: Any, h: Tensor) -> Tensor:
    if h.isfinite().all():
        h = torch.clamp(h, -1.0, 1.0)
    else:
        h = torch.nan_to_num(h)
        h = torch.clamp(h, -2.0, 2.0)
    return h


def unbounded_gradient(net: Any, h: Tensor) -> Tensor:
    if (h > 0).all():
        h = torch.log(h)
    return h


def of_its_own(net: Any, h: Tensor) -> Tensor:
    if (h > 0).all():
        h = net.clamp(h)
    return h


def of_an_attribute(net: Any, h: Tensor) -> Tensor:
    if (h > 0).all():
        net.last = torch.clamp(h, 0.0, 1.0)
    return h


def of_two_conditions(net: Any, h: Tensor) -> Tensor:
    if (h > 0).all() or (h < 0).all():
        h = torch.clamp(h, -1.0, 1.0)
    return h


def of_another_shape(net: Any, h: Tensor) -> Tensor:
    if (h > 0).all():
        h = torch.clamp(h[0], -1.0, 1.0)
    return h


def new_name(net: Any, h: Tensor) -> Tensor:
    if (h > 0).all():
        y = torch.clamp(h, -1.0, 1.0)
    return y  # type: ignore[reportPossiblyUnbound]  # which is the point


def written(before: bool) -> Forward:
    """Writes after the branch into what a name stood for before it, or into what it stands for then."""

    def forward(net: Any, h: Tensor) -> Tensor:
        x = h * 1
        h = x
        if (h > 0).all():
            h = torch.clamp(h, -1.0, 1.0)
        (x if before else h).add_(1)
        return x + h

    return forward


@pytest.mark.parametrize(
    "forward",
    [
        with_another_side,
        unbounded_gradient,
        of_its_own,
        of_an_attribute,
        of_two_conditions,
        of_another_shape,
        new_name,
        written(before=False),
        written(before=True),
    ],
)
def test_other_branches_are_refused_at_their_line(forward: Forward) -> None:
    with pytest.raises(CaptureError, match=r"test_branches\.py:\d+: `if .*depends on the values.*torch.where"):
        captured(forward)
