"""Ops on a slice of a dimension that must be seen whole: a sharded vocabulary is looked up, normalised and scored
without ever being gathered. Arguments are those of the ATen ops; `axis` shards the dimension, `size` is its whole size.

A layer that is recomputed selectively does not send these messages again: what they return is kept.

Where the axis does not divide `size`, slices are rounded up and the last rank's ends in filler: it counts for nothing
and its gradient is zero.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from galvatron import grouped
from galvatron.errors import GalvatronError
from galvatron.recompute import keep
from galvatron.runtime import comm
from galvatron.runtime.bounds import bounds
from galvatron.runtime.experts import route_of
from galvatron.runtime.mesh import Axis


def embedding(
    weight: Tensor,
    indices: Tensor,
    padding_idx: int = -1,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
    *,
    axis: Axis,
    size: int,
) -> Tensor:
    """Rows of a table whose rows are sharded: zero for indices that other ranks hold, so that the ranks' results add
    up.

    Args:
        weight: [rows / axis size, width], this rank's rows. Filler is never looked up.
        indices: any shape, into the whole table. One that is outside is found at the end of the step (`bounds`).
    """
    if scale_grad_by_freq or sparse:
        raise GalvatronError("an embedding with scale_grad_by_freq or sparse gradients cannot be sharded by rows")
    bounds.note("index", indices, size)
    local, inside = _local_indices(indices, weight.size(0), axis, size)
    own_padding = padding_idx - axis.index * weight.size(0) if padding_idx >= 0 else -1
    padding = own_padding if 0 <= own_padding < weight.size(0) else None
    rows = F.embedding(local, weight, padding_idx=padding)
    return rows.masked_fill(~inside.unsqueeze(-1), 0.0)


def grouped_linear(
    rows: Tensor, weight: Tensor, ids: Tensor, *, axis: Axis | None = None, size: int = 0, routed: bool = False
) -> Tensor:
    """`galvatron.grouped.grouped_linear`. Where an axis is given, this rank has some of `size` matrices. Either ranks
    have the same rows, and the result is zero for rows that choose matrices of other ranks, so that the ranks' results
    add up; or the rows have come here by what they choose.

    Args:
        rows: [rows, in].
        weight: [matrices, out, in], those of this rank. Filler is never chosen.
        ids: [rows], which of all matrices; if `routed`, those of the rows that this rank has sent.
    """
    if axis is not None:
        ids = route_of(ids, axis, size).chosen if routed else ids
        ids = ids - axis.index * len(weight)
        ids = ids.masked_fill(ids >= _own_size(len(weight), axis, size), -1)
    return grouped.grouped_linear(rows, weight, ids)


def _local_indices(indices: Tensor, rows: int, axis: Axis, size: int) -> tuple[Tensor, Tensor]:
    """Indices into this rank's rows, 0 where another rank holds the row, and which of them this rank holds."""
    local = indices - axis.index * rows
    inside = (local >= 0) & (local < _own_size(rows, axis, size))
    return local.masked_fill(~inside, 0), inside


def _own_size(slots: int, axis: Axis, size: int) -> int:
    """How many of the `slots` elements of this rank's slice are no filler; there is at least one."""
    return min(slots, size - axis.index * slots)


def cross_entropy_loss(
    logits: Tensor,
    target: Tensor,
    weight: None = None,
    reduction: int = 1,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    *,
    axis: Axis,
    size: int,
) -> Tensor:
    """Cross-entropy of logits whose classes are sharded.

    Args:
        logits: [rows, classes / axis size].
        target: [rows], indices of all `size` classes, or `ignore_index`.
        reduction: 0 (none) or 2 (sum).

    Returns:
        The loss, equal on all ranks of the axis.
    """
    if weight is not None or reduction == 1:
        raise GalvatronError(
            "a sharded cross-entropy takes no class weights, and sums or leaves the losses as they are"
        )
    losses: Tensor = _CrossEntropy.apply(logits, target, ignore_index, label_smoothing, axis, size)  # type: ignore[assignment]  # apply is untyped in torch
    return losses.sum() if reduction == 2 else losses


class _CrossEntropy(torch.autograd.Function):
    """Loss per row: the logarithm of the summed exponentials, less the target's logit (smoothed over all classes).

    One all-reduce finds the maxima, one adds the exponentials and the targets' logits. The gradient, softmax less
    target, is local.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, target: Tensor, ignore_index: int, smoothing: float, axis: Axis, size: int
    ) -> Tensor:
        scores = wide(logits)
        local, inside = _local_indices(target, logits.size(1), axis, size)
        kept = target != ignore_index
        bounds.note("label", target.masked_fill(~kept, 0), size)
        exponentials, maxima = _shifted_exponentials(scores, axis, size)
        own = _own_size(logits.size(1), axis, size)
        total, picked, every = keep(_row_sums, scores, exponentials, local, inside, own, axis)
        losses = maxima + total.log() - (1 - smoothing) * picked
        if smoothing:
            losses -= (smoothing / size) * every
        ctx.save_for_backward(exponentials.div_(total.unsqueeze(1)), local, inside, kept)
        ctx.smoothing, ctx.size, ctx.own, ctx.dtype = smoothing, size, own, logits.dtype
        return losses.masked_fill(~kept, 0.0).to(logits.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        softmax, local, inside, kept = ctx.saved_tensors
        scale = gradients[0].to(softmax.dtype).masked_fill(~kept, 0.0).unsqueeze(1)
        gradient = softmax.clone()
        if ctx.smoothing:
            gradient.narrow(1, 0, ctx.own).sub_(ctx.smoothing / ctx.size)
        gradient.scatter_add_(1, local.unsqueeze(1), inside.unsqueeze(1).to(softmax.dtype) * (ctx.smoothing - 1))
        return gradient.mul_(scale).to(ctx.dtype), None, None, None, None, None


def _row_sums(
    logits: Tensor, exponentials: Tensor, target: Tensor, inside: Tensor, own: int, axis: Axis
) -> tuple[Tensor, ...]:
    """Per row and over all ranks: the exponentials, the target's logit, and all logits."""
    picked = logits.gather(1, target.unsqueeze(1)).squeeze(1).masked_fill(~inside, 0.0)
    sums = torch.stack([exponentials.sum(1), picked, logits.narrow(1, 0, own).sum(1)])
    comm.all_reduce(sums, axis.group).wait()
    return sums.unbind()


def wide(x: Tensor) -> Tensor:
    """The tensor in at least 32 bits: like torch's kernels, sums and exponentials of half types need them."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _shifted_exponentials(x: Tensor, axis: Axis, size: int, dim: int = 1) -> tuple[Tensor, Tensor]:
    """`exp(x - maximum)`, zero for filler, and the maximum along `dim` over all ranks."""
    own = _own_size(x.size(dim), axis, size)
    maxima = keep(_maxima, x.narrow(dim, 0, own), dim, axis)
    exponentials = (x - maxima.unsqueeze(dim)).exp_()
    exponentials.narrow(dim, own, x.size(dim) - own).zero_()
    return exponentials, maxima


def _maxima(x: Tensor, dim: int, axis: Axis) -> Tensor:
    maxima = x.amax(dim)
    comm.all_reduce(maxima, axis.group, "max").wait()
    return maxima


def _sums(x: Tensor, dim: int, axis: Axis) -> Tensor:
    sums = x.sum(dim)
    comm.all_reduce(sums, axis.group).wait()
    return sums


def logsumexp(x: Tensor, dim: tuple[int, ...], keepdim: bool = False, *, axis: Axis, size: int) -> Tensor:
    """The logarithm of the summed exponentials along one sharded dimension, equal on all ranks of the axis."""
    (along,) = dim
    result: Tensor = _LogSumExp.apply(x, along % x.dim(), axis, size)  # type: ignore[assignment]  # apply is untyped in torch
    return result.unsqueeze(along) if keepdim else result


class _LogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, axis: Axis, size: int) -> Tensor:
        exponentials, maxima = _shifted_exponentials(wide(x), axis, size, dim)
        total = keep(_sums, exponentials, dim, axis)
        ctx.save_for_backward(exponentials.div_(total.unsqueeze(dim)))
        ctx.dim, ctx.dtype = dim, x.dtype
        return (maxima + total.log()).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (softmax,) = ctx.saved_tensors
        return (softmax * gradients[0].unsqueeze(ctx.dim)).to(ctx.dtype), None, None, None
