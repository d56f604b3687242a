"""Ops on slices of a vocabulary, divided evenly or not, on ranks against the ops of torch on all of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from galvatron import runtime as rt
from galvatron.runtime import spmd
from galvatron.runtime.stage import StateSpec
from tests.ranks import run_ranks

SIZES = [6, 7, 97]
LARGE = 1e3
"""Filler that would dominate any sum of exponentials."""


def axis_of(world: rt.World) -> rt.Axis:
    return rt.build_mesh(world, [[(world.size, 1)]]).axis(world.size, stride=1)


def slot_count(axis: rt.Axis, size: int) -> int:
    """Elements of this rank's slice that are no filler."""
    part = -(-size // axis.size)
    return min(part, size - axis.index * part)


def check(
    axis: rt.Axis, whole: Tensor, dim: int, sliced: Callable[[Tensor], Tensor], complete: Callable[[Tensor], Tensor]
) -> None:
    """Value and gradient of an op that gives the same on every rank; filler changes neither and gets no gradient."""
    full = whole.detach().clone().requires_grad_()
    expected = complete(full)
    weight = torch.randn(expected.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    expected.backward(weight)
    assert full.grad is not None
    place = rt.Sharded(dim, padded=True)
    own, gradient = place.take(whole, axis).clone(), place.take(full.grad, axis)
    kept = slot_count(axis, whole.size(dim))
    for filler in (0.0, LARGE, -LARGE):
        own.narrow(dim, kept, own.size(dim) - kept).fill_(filler)
        local = own.clone().requires_grad_()
        actual = sliced(local)
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
        actual.backward(weight)
        torch.testing.assert_close(local.grad, gradient, rtol=1e-12, atol=1e-12)


def cross_entropy(world: rt.World, size: int) -> None:
    axis = axis_of(world)
    generator = torch.Generator().manual_seed(size)
    logits = torch.randn(12, size, dtype=torch.float64, generator=generator) * 3
    target = torch.randint(0, size, (12,), generator=generator)
    target[0], target[1] = size - 1, 0
    for ignored in (False, True):
        target[3:5] = -100 if ignored else 1
        for reduction in (0, 2):
            for smoothing in (0.0, 0.1):
                check(
                    axis,
                    logits,
                    1,
                    lambda x, r=reduction, s=smoothing: spmd.cross_entropy_loss(
                        x, target, None, r, -100, s, axis=axis, size=size
                    ),
                    lambda x, r=reduction, s=smoothing: F.cross_entropy(
                        x, target, reduction="sum" if r else "none", label_smoothing=s
                    ),
                )


def masked_cross_entropy(world: rt.World, size: int) -> None:
    axis = axis_of(world)
    logits = torch.randn(4, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    logits[:, 1] = -torch.inf
    target = torch.tensor([0, 2, size - 1, size - 1])
    check(
        axis,
        logits,
        1,
        lambda x: spmd.cross_entropy_loss(x, target, None, 2, axis=axis, size=size),
        lambda x: F.cross_entropy(x, target, reduction="sum"),
    )


def logsumexp(world: rt.World, size: int) -> None:
    axis = axis_of(world)
    x = torch.randn(3, size, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(size)) * 3
    for keepdim in (False, True):
        check(
            axis,
            x,
            1,
            lambda x, k=keepdim: spmd.logsumexp(x, (1,), k, axis=axis, size=size),
            lambda x, k=keepdim: x.logsumexp(1, keepdim=k),
        )


def embedding(world: rt.World, size: int) -> None:
    axis = axis_of(world)
    generator = torch.Generator().manual_seed(size)
    table = torch.randn(size, 3, dtype=torch.float64, generator=generator)
    indices = torch.cat([torch.arange(size), torch.randint(0, size, (9,), generator=generator)])

    for padding in (-1, 0, size - 1):

        def sliced(x: Tensor, padding: int = padding) -> Tensor:
            return rt.all_reduce(spmd.embedding(x, indices, padding, axis=axis, size=size), axis, grad="identity")

        def complete(x: Tensor, padding: int = padding) -> Tensor:
            return F.embedding(indices, x, padding_idx=padding if padding >= 0 else None)

        check(axis, table, 0, sliced, complete)


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("case", [cross_entropy, masked_cross_entropy, logsumexp, embedding])
def test_equals_torch(case: Callable[[rt.World, int], None], size: int, ranks: int) -> None:
    run_ranks(case, ranks, size)


def there_and_back(world: rt.World, size: int) -> None:
    axis = axis_of(world)
    for shape, dim in (((size, 3), 0), ((2, size, 3), 1)):
        whole = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        spec = StateSpec("w", shape, whole.dtype, ((axis, rt.Sharded(dim, padded=True)),), "parameter")
        local = spec.shard(whole)
        assert tuple(local.shape) == spec.local_shape()
        assert not local.narrow(dim, slot_count(axis, size), local.size(dim) - slot_count(axis, size)).any()
        assert torch.equal(spec.unshard(local), whole)


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("size", SIZES)
def test_padded_state_is_cut_and_joined(size: int, ranks: int) -> None:
    run_ranks(there_and_back, ranks, size)
