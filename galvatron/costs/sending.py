"""Ops that communicate on tensors without memory: right shapes forward and backward, and what crosses the network."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch

from galvatron.costs.events import MARK
from galvatron.costs.slices import run_on_slice
from galvatron.costs.watch import Watch
from galvatron.ir.collectives import COLLECTIVES, MESSAGES, WAIT, Conversion, conversion_of, copies, ends
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
    return _Collective.apply(args[0], shape, conversion_of(op), copies(op), axis, watch)


def find_route(op: Op, chosen: torch.Tensor, axis: Axis, watch: Watch, skew: float) -> None:
    """What ranks do when they first send rows by what these choose: they tell each other how many there are."""
    size = op.kwarg("size")
    assert isinstance(size, int)
    with torch.no_grad():
        _, counts = rows_by_rank(chosen, size, axis.size, 0)
        watch.collective("all_to_all", axis, counts.numel() * counts.element_size(), at_once=True)
        choices_that_come(counts, 0, most_rows(len(chosen), axis.size, skew))


def is_uneven(op: Op) -> bool:
    """Whether what an op of a local graph does depends on how many rows choose something of the rank."""
    if op.namespace == "comm":
        return COLLECTIVES[op.target].routes
    return op.namespace == "spmd" and on_slices(op).routes


def _record(watch: Watch, axis: Axis, kind: str, payload_bytes: int) -> None:
    watch.collective(kind, axis, payload_bytes)


class _Collective(torch.autograd.Function):
    """Stands for a collective: right shapes forward and backward, and an event for what crosses the network."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Any,
        shape: list[int],
        conversion: Conversion,
        copies: tuple[float, float],
        axis: Axis,
        watch: Watch,
    ):
        ctx.shape, ctx.conversion, ctx.axis, ctx.watch = list(x.shape), conversion, axis, watch
        ctx.payload, (there, ctx.copies) = max(x.numel(), math.prod(shape)), copies
        return _moved(x, shape, conversion.forward, there, axis, ctx.payload, watch)

    @staticmethod
    def backward(ctx: Any, *gradients: Any):
        back = ctx.conversion.backward
        moved = _moved(gradients[0], ctx.shape, back, ctx.copies, ctx.axis, ctx.payload, ctx.watch)
        return moved, None, None, None, None, None


class _Wait(torch.autograd.Function):
    """Stands for the wait for a collective that was started. In the backward the gradient's collective begins here, and
    its result is there from now on beside the gradient; the kernels and the message are told where it is waited for.
    """

    @staticmethod
    def forward(ctx: Any, x: Any, axis: Axis, watch: Watch):
        ctx.axis, ctx.watch = axis, watch
        watch.collective(MARK, axis, 0)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any):
        ctx.watch.collective(MARK, ctx.axis, 0)
        (gradient,) = gradients
        both = torch.empty(2 * gradient.numel(), dtype=gradient.dtype, device=gradient.device)
        return both[: gradient.numel()].view(gradient.shape), None, None


def _moved(x: Any, shape: list[int], kind: str | None, copies: float, axis: Axis, payload: int, watch: Watch) -> Any:
    """What a tensor is after a collective; the same memory if it stays as it is."""
    if kind is None and list(x.shape) == shape:
        return x.view_as(x)
    watch.collective(kind, axis, payload * x.element_size())
    if copies:
        watch.copied(x, copies * payload * x.element_size())
    # `x.new_empty` would import torch's compiler.
    empty = partial(torch.empty, dtype=x.dtype, device=x.device)
    buffer = empty(payload * (MESSAGES[kind].buffers if kind else 0))
    result = empty(shape)
    del buffer
    return result
