"""Gradients of weights that wait: the same as without waiting, once each, through the hooks; inputs do not wait."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from galvatron.recompute import keep, recomputed
from galvatron.runtime import deferral

WIDTH, ROWS = 6, 5


def two_layers(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, w3: Tensor, waiting: bool) -> Tensor:
    linear, addmm = (deferral.linear, deferral.addmm) if waiting else (F.linear, torch.addmm)
    h = torch.tanh(linear(x, w1, b1)) + linear(x, w3)
    return torch.tanh(addmm(b2, h.view(-1, WIDTH), w2)).view_as(x)


def selective(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, w3: Tensor, waiting: bool) -> Tensor:
    assert waiting
    h = torch.tanh(keep(deferral.linear, x, w1, b1)) + deferral.linear(x, w3)
    return torch.tanh(keep(deferral.addmm, b2, h.view(-1, WIDTH), w2)).view_as(x)


def parameters() -> list[nn.Parameter]:
    torch.manual_seed(0)
    shapes = [(WIDTH, WIDTH), (WIDTH,), (WIDTH, WIDTH), (WIDTH,), (WIDTH, WIDTH)]
    return [nn.Parameter(torch.randn(shape, dtype=torch.float64)) for shape in shapes]


def inputs() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(3, ROWS, WIDTH, dtype=torch.float64, generator=generator, requires_grad=True)


def expected() -> list[Tensor]:
    x, weights = inputs(), parameters()
    return list(torch.autograd.grad(two_layers(x, *weights, waiting=False).square().sum(), [x, *weights]))


@pytest.mark.parametrize(
    "function",
    [two_layers, recomputed(two_layers), recomputed(selective, selective=True)],
    ids=["plain", "recomputed", "selective"],
)
def test_gradients_of_inputs_come_at_once_and_those_of_weights_later(function: Callable[..., Tensor]) -> None:
    x, weights, hooks = inputs(), parameters(), Counter[int]()
    for i, weight in enumerate(weights):
        weight.register_post_accumulate_grad_hook(lambda _, i=i: hooks.update([i]))
    of_x, *of_weights = expected()
    loss = function(x, *weights, waiting=True).square().sum()
    with deferral.put_off() as tasks:
        loss.backward()
    del loss
    torch.testing.assert_close(x.grad, of_x, rtol=1e-13, atol=1e-13)
    assert all(weight.grad is None for weight in weights) and not hooks and len(tasks) == 3
    deferral.run(tasks)
    for weight, gradient in zip(weights, of_weights, strict=True):
        torch.testing.assert_close(weight.grad, gradient, rtol=1e-13, atol=1e-13)
    assert set(hooks.values()) == {1} and len(hooks) == len(weights) and not tasks


def test_without_put_off_nothing_waits() -> None:
    x, weights = inputs(), parameters()
    two_layers(x, *weights, waiting=True).square().sum().backward()
    for tensor, gradient in zip([x, *weights], expected(), strict=True):
        torch.testing.assert_close(tensor.grad, gradient, rtol=1e-13, atol=1e-13)


def test_frozen_weights_other_than_leaves_and_inputs_without_a_gradient() -> None:
    x, (w1, b1, w2, *_) = inputs(), parameters()
    w1.requires_grad_(False)
    b1.requires_grad_(False)
    with deferral.put_off() as tasks:
        deferral.linear(deferral.linear(x, w1, b1), 2 * w2).sum().backward()
        deferral.linear(x.detach(), w2).sum().backward()
    assert not tasks and w2.grad is not None and x.grad is not None
