"""Sums, norms and exponentials of 16-bit values are computed in more: in torch's kernels, and in those on slices."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from galvatron import runtime as rt
from galvatron.runtime import spmd
from tests.ranks import run_ranks

HALF = [torch.bfloat16, torch.float16]
WIDTH = 1024


def attention(x: Tensor) -> Tensor:
    query, key, value = x.view(3, 2, 1, 64, -1)
    return F.scaled_dot_product_attention(query, key, value, scale=0.01)


KERNELS: dict[str, Callable[[Tensor], Tensor]] = {
    "layer_norm": lambda x: F.layer_norm(x, (WIDTH,), torch.ones(WIDTH, dtype=x.dtype)),
    "rms_norm": lambda x: F.rms_norm(x, (WIDTH,), torch.ones(WIDTH, dtype=x.dtype)),
    "group_norm": lambda x: F.group_norm(x, 2),
    "softmax": lambda x: x.softmax(-1),
    "log_softmax": lambda x: x.log_softmax(-1),
    "sum": lambda x: x.sum(-1),
    "mean": lambda x: x.mean(-1),
    "attention": attention,
}


def values(*shape: int, dtype: torch.dtype) -> Tensor:
    """Values far from zero beside their spread, which 8 bits would lose."""
    return (30 + torch.randn(shape, generator=torch.Generator().manual_seed(0))).to(dtype)


def assert_rounded(actual: Tensor, exact: Tensor, units: float = 1) -> None:
    """Equal to rounding of the type of `actual`; where terms cancel out, of the largest value."""
    scale = exact.abs().clamp_min(2**-6 * float(exact.abs().max()))
    error = ((actual.to(exact.dtype) - exact).abs() / scale).max()
    assert error <= units * torch.finfo(actual.dtype).eps, f"{error / torch.finfo(actual.dtype).eps:.2f} units"


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("name", KERNELS)
def test_kernels_of_torch(name: str, dtype: torch.dtype) -> None:
    x = values(6, WIDTH, dtype=dtype).requires_grad_()
    exact = x.detach().double().requires_grad_()
    actual, expected = KERNELS[name](x), KERNELS[name](exact)
    assert actual.dtype == dtype
    assert_rounded(actual.detach(), expected.detach())


def axis_of(world: rt.World) -> rt.Axis:
    return rt.build_mesh(world, [[(world.size, 1)]]).axis(world.size, stride=1)


def normalisers(world: rt.World, dtype: torch.dtype) -> None:
    axis = axis_of(world)
    whole = values(5, WIDTH, dtype=dtype)
    target = torch.arange(5) * 100
    for name, sliced, complete in (
        (
            "logsumexp",
            lambda x: spmd.logsumexp(x, (1,), axis=axis, size=WIDTH),
            lambda x: x.logsumexp(1),
        ),
        (
            "cross_entropy",
            lambda x: spmd.cross_entropy_loss(x, target, None, 0, axis=axis, size=WIDTH),
            lambda x: F.cross_entropy(x, target, reduction="none"),
        ),
    ):
        own, exact = rt.Sharded(1).take(whole, axis).clone().requires_grad_(), whole.double().requires_grad_()
        actual, expected = sliced(own), complete(exact)
        assert actual.dtype == dtype, name
        assert_rounded(actual.detach(), expected.detach())
        actual.sum().backward()
        expected.sum().backward()
        assert own.grad is not None and own.grad.dtype == dtype and exact.grad is not None
        assert_rounded(own.grad, rt.Sharded(1).take(exact.grad, axis))


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_a_sharded_vocabulary(dtype: torch.dtype) -> None:
    run_ranks(normalisers, 2, dtype)


def ring(world: rt.World, dtype: torch.dtype) -> None:
    """Many columns of nearly equal weight: their sum, and what each round adds to it, are beyond 8 bits."""
    axis = axis_of(world)
    generator = torch.Generator().manual_seed(0)
    whole = [torch.randn(1, 2, 256, 8, generator=generator).to(dtype) for _ in range(3)]
    weight = torch.randn(1, 2, 256, 8, generator=generator).to(dtype)
    own = [rt.Sharded(2).take(t, axis).clone().requires_grad_() for t in whole]
    exact = [t.double().requires_grad_() for t in whole]
    actual = rt.scaled_dot_product_attention(own[0], own[1], own[2], is_causal=True, axis=axis, size=256)
    expected = F.scaled_dot_product_attention(exact[0], exact[1], exact[2], is_causal=True)
    actual.backward(rt.Sharded(2).take(weight, axis))
    expected.backward(weight.double())
    assert actual.dtype == dtype
    pairs = [(actual.detach(), expected.detach()), *((a.grad, e.grad) for a, e in zip(own, exact, strict=True))]
    for found, wanted in pairs:
        assert found is not None and wanted is not None and found.dtype == dtype
        wanted = rt.Sharded(2).take(wanted, axis)
        error = (found.double() - wanted).norm() / wanted.norm()
        assert error <= torch.finfo(dtype).eps, f"{error / torch.finfo(dtype).eps:.2f} units"


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_ring_attention(dtype: torch.dtype) -> None:
    run_ranks(ring, 2, dtype)
