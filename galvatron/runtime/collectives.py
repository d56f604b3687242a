"""The communication that generated code calls: each function moves a tensor from one placement on an axis to another.

Every one of them is linear, so each is a pair (forward, adjoint) of plain functions on tensors; autograd sees one
`Function` that applies the first and, for the gradient, the second. The placements R, R', P, S are those of
`galvatron/ir/layout.py`; R' is a replicated value whose gradient is a partial sum.

How a dimension is sharded is told as in `Sharded` (`runtime.slices`). Integer and boolean tensors work too and carry no
gradient.

One that sends may be `started`: what it gives then is for `wait`, which gives the tensor (`runtime.started`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from galvatron.errors import GalvatronError
from galvatron.runtime import comm
from galvatron.runtime.comm import now
from galvatron.runtime.experts import find_routes, route_of
from galvatron.runtime.mesh import Axis
from galvatron.runtime.slices import Sharded, in_order, route
from galvatron.runtime.started import Map, Started, UnderWay, ended


class _Linear(torch.autograd.Function):
    """A linear map with its adjoint given; nothing is saved."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, forward: Map, adjoint: Map) -> Tensor:
        ctx.adjoint, ctx.place = adjoint, now.place
        return ended(forward(x))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        now.place = ctx.place
        gradient = ended(ctx.adjoint(gradients[0]))
        now.place = None
        return gradient, None, None


def _apply(x: Tensor, forward: Map, adjoint: Map, started: bool = False) -> Any:
    if started:
        return Started.of(x, forward, adjoint)
    if x.requires_grad and torch.is_grad_enabled():
        return _Linear.apply(x, forward, adjoint)
    return ended(forward(x))


def copy(x: Tensor, axis: Axis) -> Tensor:
    """R -> R': identity; the gradient is summed over the axis."""
    return _apply(x, _identity, lambda g: _sum(g, axis))


def all_reduce(x: Tensor, axis: Axis, *, grad: str, started: bool = False) -> Tensor:
    """P -> R (`grad="identity"`) or R' (`grad="all_reduce"`): the sum over the axis."""
    if grad == "identity":
        return _apply(x, lambda t: _sum(t, axis), _identity, started)
    if grad == "all_reduce":
        return _apply(x, lambda t: _sum(t, axis), lambda g: _sum(g, axis), started)
    raise _bad_grad("all_reduce", grad)


def all_gather(
    x: Tensor, axis: Axis, *, dim: int, outer: int = 1, folded: bool = False, grad: str, started: bool = False
) -> Tensor:
    """S -> R (`grad="slice"`) or R' (`grad="reduce_scatter"`): the whole tensor."""
    place = Sharded(dim, outer, folded=folded)
    if grad == "slice":
        return _apply(x, lambda t: _gather(t, axis, place), lambda g: _part(g, axis, place), started)
    if grad == "reduce_scatter":
        return _apply(x, lambda t: _gather(t, axis, place), lambda g: _sum_part(g, axis, place), started)
    raise _bad_grad("all_gather", grad)


def reduce_scatter(
    x: Tensor, axis: Axis, *, dim: int, outer: int = 1, folded: bool = False, started: bool = False
) -> Tensor:
    """P -> S: this rank's slice of the sum over the axis."""
    place = Sharded(dim, outer, folded=folded)
    return _apply(x, lambda t: _sum_part(t, axis, place), lambda g: _gather(g, axis, place), started)


def slice(x: Tensor, axis: Axis, *, dim: int, outer: int = 1, folded: bool = False, grad: str) -> Tensor:
    """R (`grad="all_gather"`) or R' (`grad="pad"`) -> S: this rank's slice."""
    place = Sharded(dim, outer, folded=folded)
    if grad == "all_gather":
        return _apply(x, lambda t: _part(t, axis, place), lambda g: _gather(g, axis, place))
    if grad == "pad":
        return _apply(x, lambda t: _part(t, axis, place), lambda g: _padded(g, axis, place))
    raise _bad_grad("slice", grad)


def all_to_all(
    x: Tensor,
    axis: Axis,
    *,
    split_dim: int,
    split_outer: int = 1,
    split_folded: bool = False,
    concat_dim: int,
    concat_outer: int = 1,
    concat_folded: bool = False,
    started: bool = False,
) -> Tensor:
    """S(concat) -> S(split): what was split becomes whole, what was whole becomes split; or one dimension is cut anew.

    Both say how the tensor is cut that is whole on the axis.
    """
    concat = Sharded(concat_dim, concat_outer, folded=concat_folded)
    split = Sharded(split_dim, split_outer, folded=split_folded)
    return _apply(x, lambda t: _exchange(t, axis, concat, split), lambda g: _exchange(g, axis, split, concat), started)


def dispatch(
    x: Tensor,
    axis: Axis,
    *,
    dim: int,
    outer: int = 1,
    by: Tensor,
    size: int,
    also: Sequence[Tensor] = (),
    started: bool = False,
) -> Tensor:
    """S -> S(by): each row goes to the rank that has what it chooses.

    Args:
        dim, outer: of rows, which are the first dimension.
        by: [rows], what each row chooses.
        size: among how many; each rank has an equal part of them.
        also: what rows choose that are sent later: ranks tell each other at once how many of all of them go where.
    """
    find_routes((by, *also), axis, size)
    route = route_of(by, axis, size)
    return _apply(x, lambda t: route.there(t, axis), lambda g: route.back(g, axis), started)


def combine(x: Tensor, axis: Axis, *, dim: int, outer: int = 1, by: Tensor, size: int, started: bool = False) -> Tensor:
    """S(by) -> S: each row goes back to where it came from. Arguments are those of `dispatch`."""
    route = route_of(by, axis, size)
    return _apply(x, lambda t: route.back(t, axis), lambda g: route.there(g, axis), started)


def wait(started: Tensor | Started, axis: Axis) -> Tensor:
    """The result of a collective on the axis that was started; its gradient's collective is started here.

    Args:
        started: what the collective gave, which its signature calls a tensor.
    """
    assert isinstance(started, Started), "only what is started is waited for"
    return started.wait()


def first(x: Tensor, axis: Axis, *, grad: str) -> Tensor:
    """R -> P (`grad="identity"`): coordinate 0 keeps the value, the others hold zero. R' -> R (`grad="first"`): the
    value stays, coordinate 0 keeps the gradient and the others pass zero.
    """
    if grad == "identity":
        return _apply(x, lambda t: _on_first(t, axis), _identity)
    if grad == "first":
        return _apply(x, _identity, lambda g: _on_first(g, axis))
    raise _bad_grad("first", grad)


def pad(x: Tensor, axis: Axis, *, dim: int, outer: int = 1, folded: bool = False) -> Tensor:
    """S -> P: zero outside this rank's slice."""
    place = Sharded(dim, outer, folded=folded)
    return _apply(x, lambda t: _padded(t, axis, place), lambda g: _part(g, axis, place))


def _bad_grad(op: str, grad: str) -> GalvatronError:
    return GalvatronError(f"{op} has no gradient rule {grad!r}")


# The maps themselves, without autograd.


def gather_full(x: Tensor, axis: Axis, place: Sharded) -> Tensor:
    """The whole tensor from the axis' slices."""
    return _gather(x, axis, place).wait()


def _gather(x: Tensor, axis: Axis, place: Sharded) -> UnderWay:
    parts = x.new_empty((axis.size, *x.shape))
    return UnderWay(comm.all_gather(parts, packed(x), axis.group), lambda: place.join(parts))


def _identity(x: Tensor) -> Tensor:
    return x.view_as(x)


def _sum(x: Tensor, axis: Axis) -> UnderWay:
    # `x` may be shared with other consumers, or be a gradient that autograd still adds to: reduce a copy.
    total = packed(x.clone(memory_format=torch.contiguous_format))
    return UnderWay(comm.all_reduce(total, axis.group), lambda: total)


def _sum_part(x: Tensor, axis: Axis, place: Sharded) -> UnderWay:
    parts = packed(place.split(x, axis.size))
    total = torch.empty_like(parts[0])
    return UnderWay(comm.reduce_scatter(total, parts, axis.group), lambda: total)


def _part(x: Tensor, axis: Axis, place: Sharded) -> Tensor:
    return place.take(x, axis).contiguous()


def _padded(x: Tensor, axis: Axis, place: Sharded) -> Tensor:
    parts = x.new_zeros((axis.size, *x.shape))
    parts[axis.index] = x
    return place.join(parts)


def _exchange(x: Tensor, axis: Axis, source: Sharded, target: Sharded) -> UnderWay:
    if source.dim == target.dim:
        return _cut_anew(x, axis, source, target)
    sent = packed(target.split(x, axis.size))
    received = torch.empty_like(sent)
    return UnderWay(comm.all_to_all(received, sent, axis.group), lambda: source.join(received))


def _cut_anew(x: Tensor, axis: Axis, source: Sharded, target: Sharded) -> UnderWay:
    """Another slice of the same dimension: each rank sends to each what that one is to have."""
    way = route(source, target, axis.index, axis.size)
    sent = packed(in_order(x, source.dim, way.sent).movedim(source.dim, 0))
    received = torch.empty_like(sent)
    handle = comm.all_to_all(received, sent, axis.group, received_parts=way.received_counts, sent_parts=way.sent_counts)
    return UnderWay(handle, lambda: in_order(received.movedim(0, source.dim), source.dim, way.received))


def _on_first(x: Tensor, axis: Axis) -> Tensor:
    return x.view_as(x) if axis.index == 0 else torch.zeros_like(x)


def packed(x: Tensor) -> Tensor:
    """The tensor in memory of its own order: no strides, and nothing that is still to be negated or conjugated."""
    return (x.resolve_conj() if x.is_complex() else x).resolve_neg().contiguous()
