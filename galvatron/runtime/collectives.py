"""The communication that generated code calls: each function moves a tensor from one placement on an axis to another.

Every one of them is linear, so each is a pair (forward, adjoint) of plain functions on tensors; autograd sees one
`Function` that applies the first and, for the gradient, the second. The placements R, R', P, S are those of
`galvatron/ir/layout.py`; R' is a replicated value whose gradient is a partial sum.

A sharded dimension is seen as `(outer, axis size, rest)` with the middle factor split. Integer and boolean tensors
work too and carry no gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from galvatron.errors import GalvatronError
from galvatron.runtime import comm
from galvatron.runtime.comm import now
from galvatron.runtime.mesh import Axis

Map = Callable[[Tensor], Tensor]


class _Linear(torch.autograd.Function):
    """A linear map with its adjoint given; nothing is saved."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, forward: Map, adjoint: Map) -> Tensor:
        ctx.adjoint, ctx.place = adjoint, now.place
        return forward(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        now.place = ctx.place
        gradient = ctx.adjoint(gradients[0])
        now.place = None
        return gradient, None, None


def _apply(x: Tensor, forward: Map, adjoint: Map) -> Tensor:
    if x.requires_grad and torch.is_grad_enabled():
        return _Linear.apply(x, forward, adjoint)  # type: ignore[return-value]  # apply is untyped in torch
    return forward(x)


def copy(x: Tensor, axis: Axis) -> Tensor:
    """R -> R': identity; the gradient is summed over the axis."""
    return _apply(x, _identity, lambda g: _sum(g, axis))


def all_reduce(x: Tensor, axis: Axis, *, grad: str) -> Tensor:
    """P -> R (`grad="identity"`) or R' (`grad="all_reduce"`): the sum over the axis."""
    if grad == "identity":
        return _apply(x, lambda t: _sum(t, axis), _identity)
    if grad == "all_reduce":
        return _apply(x, lambda t: _sum(t, axis), lambda g: _sum(g, axis))
    raise _bad_grad("all_reduce", grad)


def all_gather(x: Tensor, axis: Axis, *, dim: int, outer: int = 1, grad: str) -> Tensor:
    """S -> R (`grad="slice"`) or R' (`grad="reduce_scatter"`): the whole tensor."""
    if grad == "slice":
        return _apply(x, lambda t: _gather(t, axis, dim, outer), lambda g: _part(g, axis, dim, outer))
    if grad == "reduce_scatter":
        return _apply(x, lambda t: _gather(t, axis, dim, outer), lambda g: _sum_part(g, axis, dim, outer))
    raise _bad_grad("all_gather", grad)


def reduce_scatter(x: Tensor, axis: Axis, *, dim: int, outer: int = 1) -> Tensor:
    """P -> S: this rank's slice of the sum over the axis."""
    return _apply(x, lambda t: _sum_part(t, axis, dim, outer), lambda g: _gather(g, axis, dim, outer))


def slice(x: Tensor, axis: Axis, *, dim: int, outer: int = 1, grad: str) -> Tensor:
    """R (`grad="all_gather"`) or R' (`grad="pad"`) -> S: this rank's slice."""
    if grad == "all_gather":
        return _apply(x, lambda t: _part(t, axis, dim, outer), lambda g: _gather(g, axis, dim, outer))
    if grad == "pad":
        return _apply(x, lambda t: _part(t, axis, dim, outer), lambda g: _padded(g, axis, dim, outer))
    raise _bad_grad("slice", grad)


def all_to_all(
    x: Tensor, axis: Axis, *, split_dim: int, split_outer: int = 1, concat_dim: int, concat_outer: int = 1
) -> Tensor:
    """S(concat_dim) -> S(split_dim): what was split becomes whole, what was whole becomes split."""
    return _apply(
        x,
        lambda t: _exchange(t, axis, split_dim, split_outer, concat_dim, concat_outer),
        lambda g: _exchange(g, axis, concat_dim, concat_outer, split_dim, split_outer),
    )


def first(x: Tensor, axis: Axis, *, grad: str) -> Tensor:
    """R -> P (`grad="identity"`): coordinate 0 keeps the value, the others hold zero. R' -> R (`grad="first"`): the
    value stays, coordinate 0 keeps the gradient and the others pass zero.
    """
    if grad == "identity":
        return _apply(x, lambda t: _on_first(t, axis), _identity)
    if grad == "first":
        return _apply(x, _identity, lambda g: _on_first(g, axis))
    raise _bad_grad("first", grad)


def pad(x: Tensor, axis: Axis, *, dim: int, outer: int = 1) -> Tensor:
    """S -> P: zero outside this rank's slice."""
    return _apply(x, lambda t: _padded(t, axis, dim, outer), lambda g: _part(g, axis, dim, outer))


def _bad_grad(op: str, grad: str) -> GalvatronError:
    return GalvatronError(f"{op} has no gradient rule {grad!r}")


# The maps themselves, without autograd.


def gather_full(x: Tensor, axis: Axis, dim: int, outer: int = 1) -> Tensor:
    """The whole tensor from the axis' slices."""
    return _gather(x, axis, dim, outer)


def take_part(x: Tensor, axis: Axis, dim: int, outer: int = 1) -> Tensor:
    """This rank's slice, as a view where strides allow."""
    return _split(x, axis, dim, outer)[axis.index]


def take_padded(x: Tensor, axis: Axis, dim: int) -> Tensor:
    """This rank's slice of a dimension that the axis need not divide: rounded up, and filled with zeros at the end."""
    part = -(-x.size(dim) // axis.size)
    start = min(axis.index * part, x.size(dim))
    own = x.narrow(dim, start, min(part, x.size(dim) - start))
    return F.pad(own, [0, 0] * (x.dim() - 1 - dim) + [0, part - own.size(dim)]) if own.size(dim) < part else own


def _identity(x: Tensor) -> Tensor:
    return x.view_as(x)


def _sum(x: Tensor, axis: Axis) -> Tensor:
    # `x` may be shared with other consumers, or be a gradient that autograd still adds to: reduce a copy.
    total = packed(x.clone(memory_format=torch.contiguous_format))
    comm.all_reduce(total, axis.group).wait()
    return total


def _gather(x: Tensor, axis: Axis, dim: int, outer: int) -> Tensor:
    parts = x.new_empty((axis.size, *x.shape))
    comm.all_gather(parts, packed(x), axis.group).wait()
    return _join(parts, axis, dim, outer)


def _sum_part(x: Tensor, axis: Axis, dim: int, outer: int) -> Tensor:
    parts = packed(_split(x, axis, dim, outer))
    total = torch.empty_like(parts[0])
    comm.reduce_scatter(total, parts, axis.group).wait()
    return total


def _part(x: Tensor, axis: Axis, dim: int, outer: int) -> Tensor:
    return _split(x, axis, dim, outer)[axis.index].contiguous()


def _padded(x: Tensor, axis: Axis, dim: int, outer: int) -> Tensor:
    parts = x.new_zeros((axis.size, *x.shape))
    parts[axis.index] = x
    return _join(parts, axis, dim, outer)


def _exchange(x: Tensor, axis: Axis, split_dim: int, split_outer: int, concat_dim: int, concat_outer: int) -> Tensor:
    sent = packed(_split(x, axis, split_dim, split_outer))
    received = torch.empty_like(sent)
    comm.all_to_all(received, sent, axis.group).wait()
    return _join(received, axis, concat_dim, concat_outer)


def _on_first(x: Tensor, axis: Axis) -> Tensor:
    return x.view_as(x) if axis.index == 0 else torch.zeros_like(x)


def packed(x: Tensor) -> Tensor:
    """The tensor in memory of its own order: no strides, and nothing that is still to be negated or conjugated."""
    return (x.resolve_conj() if x.is_complex() else x).resolve_neg().contiguous()


def _split(x: Tensor, axis: Axis, dim: int, outer: int) -> Tensor:
    """The slices of `dim`, one per rank of the axis, stacked in front: a view where strides allow."""
    shape = x.shape
    pieces = 2 * axis.size if axis.folded else axis.size
    if shape[dim] % (outer * pieces):
        raise GalvatronError(f"dimension {dim} of shape {tuple(shape)} does not split into {outer} x {pieces} pieces")
    parts = x.unflatten(dim, (outer, pieces, shape[dim] // (outer * pieces)))
    if axis.folded:
        # Rank i has pieces i and 2n-1-i.
        parts = torch.stack(
            [parts.narrow(dim + 1, 0, axis.size), parts.flip(dim + 1).narrow(dim + 1, 0, axis.size)], dim + 2
        )
        return parts.movedim(dim + 1, 0).flatten(dim + 1, dim + 3)
    return parts.movedim(dim + 1, 0).flatten(dim + 1, dim + 2)


def _join(parts: Tensor, axis: Axis, dim: int, outer: int) -> Tensor:
    """The inverse of `_split`: `parts[i]` is slice `i` of `dim`."""
    rest = parts.shape[dim + 1] // outer
    if axis.folded:
        halves = parts.unflatten(dim + 1, (outer, 2, rest // 2)).movedim(0, dim + 1)
        front, back = halves.unbind(dim + 2)
        return torch.cat([front, back.flip(dim + 1)], dim + 1).flatten(dim, dim + 2)
    return parts.unflatten(dim + 1, (outer, rest)).movedim(0, dim + 1).flatten(dim, dim + 2)
