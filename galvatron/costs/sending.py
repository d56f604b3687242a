"""Ops that communicate on tensors without memory: right shapes forward and backward, and what crosses the network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch

from galvatron.costs.events import MARK
from galvatron.costs.slices import run_on_slice
from galvatron.costs.watch import Watch
from galvatron.ir.collectives import COLLECTIVES, MESSAGES, WAIT, Conversion, conversion_of, copies, ends, is_started
from galvatron.ir.graph import Op
from galvatron.ir.layout import Axis, is_routed
from galvatron.ir.skew import most_rows
from galvatron.ir.spmd import on_slices
from galvatron.ir.types import evaluate
from galvatron.routes import choices_that_come, rows_by_rank


def communicated(
    op: Op, args: tuple[Any, ...], kwargs: dict[str, Any], axis: Axis, watch: Watch, batch: int, skew: float
) -> torch.Tensor:
    """The result of an op that communicates on an axis, on tensors without memory; the watch is told what it sends."""
    if op.namespace == "spmd":
        return run_on_slice(op, args, kwargs, axis, partial(_record, watch, axis), watch.kind, skew)
    if op.target == WAIT:
        return _Wait.apply(args[0], axis, watch)
    shape = [evaluate(d, batch) for d in op.result.type.shape]
    if is_routed(ends(op)[1]):
        shape[0] = most_rows(shape[0], axis.size, skew)
    return _Collective.apply(args[0], shape, conversion_of(op), copies(op), axis, watch, is_started(op))


def find_routes(op: Op, chosen: Sequence[torch.Tensor], axis: Axis, watch: Watch, skew: float) -> None:
    """What ranks do when they first send rows by what these choose: they tell each other how many there are."""
    size = op.kwarg("size")
    assert isinstance(size, int)
    with torch.no_grad():
        counts = torch.stack([rows_by_rank(ids, size, axis.size, 0)[1] for ids in chosen], 1)
        watch.collective("all_to_all", axis, counts.numel() * counts.element_size(), at_once=True)
        for i, ids in enumerate(chosen):
            choices_that_come(counts[:, i], 0, most_rows(len(ids), axis.size, skew))


def is_uneven(op: Op) -> bool:
    """Whether what an op of a local graph does depends on how many rows choose something of the rank."""
    if op.namespace == "comm":
        return COLLECTIVES[op.target].routes
    return op.namespace == "spmd" and on_slices(op).routes


def _record(watch: Watch, axis: Axis, kind: str, payload_bytes: int) -> None:
    watch.collective(kind, axis, payload_bytes)


class _Collective(torch.autograd.Function):
    """Stands for a collective: right shapes forward and backward, and an event for what crosses the network.

    Where it is started its result is under way: until it is waited for it takes the memory of what is sent and of what
    comes. What a backward waits for here has been laid out where it began, at the wait.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Any,
        shape: list[int],
        conversion: Conversion,
        copies: tuple[float, float],
        axis: Axis,
        watch: Watch,
        started: bool,
    ):
        ctx.started = started
        ctx.shape, ctx.conversion, ctx.axis, ctx.watch = list(x.shape), conversion, axis, watch
        ctx.payload, (there, ctx.copies) = max(x.numel(), math.prod(shape)), copies
        part = "begun" if started else "all"
        return _moved(x, shape, conversion.forward, there, axis, ctx.payload, watch, part)

    @staticmethod
    def backward(ctx: Any, *gradients: Any):
        back = ctx.conversion.backward
        part = "ended" if ctx.started else "all"
        moved = _moved(gradients[0], ctx.shape, back, ctx.copies, ctx.axis, ctx.payload, ctx.watch, part)
        return moved, None, None, None, None, None, None


class _Wait(torch.autograd.Function):
    """Stands for the wait for a collective that was started. In the backward the gradient's collective begins here, and
    its result is there from now on beside the gradient; the kernels and the message are told where it is waited for.
    """

    @staticmethod
    def forward(ctx: Any, x: Any, axis: Axis, watch: Watch):
        ctx.axis, ctx.watch = axis, watch
        watch.collective(MARK, axis, 0)
        laid_out = x.untyped_storage().nbytes() > x.numel() * x.element_size()
        return torch.empty(x.shape, dtype=x.dtype, device=x.device) if laid_out else x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any):
        ctx.watch.collective(MARK, ctx.axis, 0)
        (gradient,) = gradients
        return _within(gradient, gradient.shape, 2 * gradient.numel()), None, None


def _moved(
    x: Any,
    shape: list[int],
    kind: str | None,
    copies: float,
    axis: Axis,
    payload: int,
    watch: Watch,
    part: Literal["all", "begun", "ended"],
) -> Any:
    """What a tensor is after a collective; the same memory if it stays as it is. Parts of the ranks that are laid out
    one by one are gone when it has ended, and of one that has only begun they are all there is."""
    if kind is None and list(x.shape) == shape:
        return x.view_as(x)
    watch.collective(kind, axis, payload * x.element_size())
    if copies:
        watch.copied(x, copies * payload * x.element_size())
    # `x.new_empty` would import torch's compiler.
    empty = partial(torch.empty, dtype=x.dtype, device=x.device)
    buffers = payload * (MESSAGES[kind].buffers if kind else 0)
    if part == "begun":
        return _within(x, shape, buffers)
    buffer = empty(buffers if part == "all" else 0)
    result = empty(shape)
    del buffer
    return result


def _within(like: Any, shape: Sequence[int], numbers: int) -> Any:
    """A tensor of a shape in memory of at least so many numbers."""
    own = math.prod(shape)
    memory = torch.empty(max(numbers, own), dtype=like.dtype, device=like.device)
    return memory[:own].view(shape)
