"""Recomputed calls: the same gradients, what runs again, and what is kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from galvatron.errors import GalvatronError
from galvatron.recompute import again, keep, once, recomputed

calls: Counter[str] = Counter()


@pytest.fixture(autouse=True)
def no_calls() -> None:
    calls.clear()


def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        calls[name] += 1
        return function(*args, **kwargs)

    return call


linear, attend, add = (counted(f.__name__, f) for f in (F.linear, F.scaled_dot_product_attention, torch.add))


def block(x: Tensor, norm: Tensor, qkv: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """A transformer block with kept matrices and attention; queries, keys and values are views of one tensor."""
    h = F.layer_norm(x, norm.shape, norm)
    q, k, v = keep(linear, h, qkv).chunk(3, dim=-1)
    q, k, v = (t.unflatten(-1, (2, -1)).transpose(1, 2) for t in (q.sin(), k, v))
    mixed = keep(attend, q, k, v, is_causal=True).transpose(1, 2).flatten(2)
    x = x + mixed
    return add(x, keep(linear, F.gelu(keep(linear, F.layer_norm(x, norm.shape, norm), up)), down))


def tensors(size: int = 8) -> list[Tensor]:
    torch.manual_seed(0)
    shapes = [(2, 5, size), (size,), (3 * size, size), (2 * size, size), (size, 2 * size)]
    return [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes]


def gradients(function: Callable[..., Tensor], inputs: list[Tensor]) -> list[Tensor]:
    # A caller's graph in front of and behind the call.
    return list(torch.autograd.grad(function(inputs[0] * 2, *inputs[1:]).square().sum(), inputs))


@pytest.mark.parametrize("selective", [False, True])
def test_gradients_are_those_of_the_function(selective: bool) -> None:
    inputs = tensors()
    expected = gradients(block, inputs)
    for got, want in zip(gradients(recomputed(block, selective=selective), inputs), expected, strict=True):
        assert torch.equal(got, want)


def test_a_full_replay_ends_with_the_last_tensor_that_is_missing() -> None:
    gradients(recomputed(block), tensors())
    assert calls == {"linear": 2 * 3, "scaled_dot_product_attention": 2, "add": 1}


def test_a_selective_replay_takes_what_is_kept() -> None:
    gradients(recomputed(block, selective=True), tensors())
    assert calls == {"linear": 3, "scaled_dot_product_attention": 1, "add": 1}


def test_a_part_that_is_recomputed_alone() -> None:
    def with_part(x: Tensor, norm: Tensor, qkv: Tensor, up: Tensor, down: Tensor) -> Tensor:
        q, k, v = linear(F.layer_norm(x, norm.shape, norm), qkv).chunk(3, dim=-1)
        x = x + again(lambda q, k, v: add((q @ k.mT).softmax(-1) @ v, 1), q, k, v)
        return x + linear(F.gelu(linear(x, up)), down)

    inputs = tensors()
    expected = gradients(with_part, inputs)
    assert calls == {"linear": 3, "add": 1}
    packed: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t) or t, lambda t: t):
        got = gradients(with_part, inputs)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    assert not any(t.shape[-2:] == (5, 5) for t in packed)


def test_no_gradient_no_recording() -> None:
    inputs = tensors()
    with torch.no_grad():
        out = recomputed(block, selective=True)(*inputs)
    assert not out.requires_grad
    assert torch.equal(out, block(*inputs))


def test_inputs_without_a_gradient() -> None:
    def look_up(ids: Tensor, table: Tensor) -> Tensor:
        return F.embedding(ids, table).sin()

    ids, table = torch.tensor([1, 0, 1]), torch.randn(4, 3, requires_grad=True)
    for selective in (False, True):
        got, want = (
            torch.autograd.grad(f(ids, table).sum(), table)[0]
            for f in (recomputed(look_up, selective=selective), look_up)
        )
        assert torch.equal(got, want)
    assert not recomputed(look_up)(ids, table.detach()).requires_grad


def test_several_results_and_a_backward_of_one_of_them() -> None:
    def two(x: Tensor) -> tuple[Tensor, Tensor]:
        return x.sin(), x.exp()

    x = torch.randn(3, requires_grad=True)
    sine, exponential = recomputed(two)(x)
    assert torch.equal(torch.autograd.grad(sine.sum(), x)[0], x.cos())
    assert torch.equal(torch.autograd.grad(exponential.sum(), x)[0], x.exp())


def test_a_graph_that_is_retained_is_replayed_once() -> None:
    inputs = tensors()
    loss = recomputed(block)(*inputs).sum()
    first = torch.autograd.grad(loss, inputs, retain_graph=True)
    again = torch.autograd.grad(loss, inputs)
    assert calls["linear"] == 2 * 3
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_a_result_that_only_steps_read_need_not_be_kept() -> None:
    doubled = counted("double", lambda x: x * 2)

    def function(x: Tensor, weight: Tensor) -> Tensor:
        return keep(doubled, once(linear, x.sin(), weight)).exp().sin()

    inputs = [torch.randn(4, 4, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    expected = torch.autograd.grad(function(*inputs).sum(), inputs)
    calls.clear()
    got = torch.autograd.grad(recomputed(function, selective=True)(*inputs).sum(), inputs)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    assert calls == {"linear": 1, "double": 1}


def test_steps_inside_an_autograd_function() -> None:
    inner = counted("inner", lambda x: x + 1)

    class Shifted(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            shifted = keep(inner, x)
            ctx.save_for_backward(shifted)
            return shifted.square()

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> Tensor:
            return gradients[0] * 2 * ctx.saved_tensors[0]

    x = torch.randn(3, requires_grad=True)
    for selective, times in ((True, 1), (False, 2)):
        calls.clear()
        out = recomputed(lambda x: Shifted.apply(x.sin()), selective=selective)(x)
        (gradient,) = torch.autograd.grad(out.sum(), x)  # pyright: ignore[reportAttributeAccessIssue]  # apply is untyped
        torch.testing.assert_close(gradient, 2 * (x.sin() + 1) * x.cos())
        assert calls["inner"] == times


def test_a_function_that_differs_the_second_time_is_refused() -> None:
    runs = iter([3, 2, 3, 4])

    def function(x: Tensor) -> Tensor:
        return x.expand(next(runs), 5).contiguous().sin()

    x = torch.randn(5, requires_grad=True)
    loss = recomputed(function)(x).sum()
    with pytest.raises(GalvatronError, match=r"shape \(2, 5\) instead of \(3, 5\)"):
        loss.backward()
