"""Gradients that forward takes itself: what is written in their place, and which are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import galvatron
from galvatron.errors import CaptureError


class Model(nn.Module):
    def __init__(self, function: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
        self.window = nn.Conv1d(1, 1, 3)
        self.c = nn.Linear(6, 6)
        self.c.weight = self.b.weight
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def late(m: Any, x: Tensor) -> Tensor:
    y = x.clone()
    gate = m.a(y).sigmoid()
    y.requires_grad_()
    (slope,) = torch.autograd.grad((y * gate).sum(), y, create_graph=True)
    return slope.pow(2).mean()


def unused(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    (slope,) = torch.autograd.grad(m.b(x).sum(), y, create_graph=True)
    return slope.mean()


def shared(m: Any, x: Tensor) -> Tensor:
    loss = m.c(m.b(x).tanh()).pow(2).mean()
    (slope,) = torch.autograd.grad(loss, m.b.weight, create_graph=True)
    return loss + slope.pow(2).mean()


def dropped(m: Any, x: Tensor) -> Tensor:
    x.requires_grad_()
    (slope,) = torch.autograd.grad(F.dropout(m.a(x), 0.5).sum(), x, create_graph=True)
    return slope.pow(2).mean()


def by_a_window(m: Any, x: Tensor) -> Tensor:
    loss = m.window(x[:, None]).tanh().pow(2).mean()
    (slope,) = torch.autograd.grad(loss, m.window.weight, create_graph=True)
    return loss + slope.pow(2).mean()


def by_a_norm(m: Any, x: Tensor) -> Tensor:
    x.requires_grad_()
    found = torch.nn.functional.embedding_bag(torch.zeros_like(x).long(), m.a.weight, per_sample_weights=x, mode="sum")
    (slope,) = torch.autograd.grad(found.pow(2).sum(), x, create_graph=True)
    return slope.pow(2).mean()


def written(m: Any, x: Tensor) -> Tensor:
    loss = m.a(x).pow(2).mean()
    loss.backward(retain_graph=True)
    return loss


REFUSED = {
    late: "a gradient is computed by a tensor that required none when it was first used: call requires_grad_() before",
    unused: "a gradient by a tensor that was not used is asked for",
    shared: "the gradient by a parameter that several layers share is computed inside forward",
    dropped: "is computed inside forward, which would draw again",
    by_a_window: "a gradient by aten.convolution_backward.default is computed inside forward",
    by_a_norm: "is computed inside forward, which cannot be captured",
    written: "a gradient is computed inside forward in a way that cannot be captured: use torch.autograd.grad",
}
"""By a forward, what is wrong with it."""


@pytest.mark.parametrize("function", REFUSED, ids=lambda f: f.__name__)
def test_what_cannot_be_written_is_refused_with_its_line(function: Any) -> None:
    with pytest.raises(CaptureError) as caught:
        galvatron.capture(Model(function), {"x": torch.randn(4, 6)})
    assert REFUSED[function] in str(caught.value)
    assert "test_derivatives.py:" in str(caught.value)


def test_without_create_graph_the_gradient_is_detached() -> None:
    def attacked(m: Any, x: Tensor) -> Tensor:
        (slope,) = torch.autograd.grad(m.a(x).pow(2).sum(), m.a.weight)
        return (m.b(x) @ slope).mean()

    program = galvatron.capture(Model(attacked), {"x": torch.randn(4, 6)})
    trained = {state.name for state in program.state if state.trainable}
    assert "b.weight" in trained and "a.weight" not in trained
