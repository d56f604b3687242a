"""Ops on a slice of a dimension (`ir.spmd`) under fake tensors: what they cost on the slice, and what they send."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from galvatron.ir.graph import Op
from galvatron.ir.interpreter import torch_op
from galvatron.ir.layout import Axis
from galvatron.ir.ops.kernels import call_on
from galvatron.ir.ops.schemas import whole_target
from galvatron.ir.ops.table import operator_of
from galvatron.ir.skew import EVEN, most_rows
from galvatron.ir.spmd import KEYWORDS, on_slices
from galvatron.recompute import keep

Record = Callable[[str, int], None]
"""Notes a collective on the axis: its kind and its payload in bytes."""


def run_on_slice(
    op: Op,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    axis: Axis,
    record: Record,
    kind: str = "cpu",
    skew: float = EVEN,
) -> Any:
    """The result of an op of `ir.spmd` on fake tensors of a kind of device, with its collectives recorded forward and
    backward.

    Args:
        skew: how unevenly rows choose (`galvatron.ir.skew`).
    """
    own = {k: v for k, v in kwargs.items() if k not in KEYWORDS}
    if ring := on_slices(op).ring:
        mask = (dict(zip(op.arguments, args, strict=False)) | own).get(operator_of(op).mask)
        turns = ring(op, axis.size)
        options = {k: v for k, v in own.items() if k in ("scale", "enable_gqa")}
        attention = call_on(kind, f"aten.{op.name}") or getattr(torch.ops.aten, op.name)
        return _Ring.apply(*args[:3], mask, turns, axis, record, partial(attention, **options))
    counterpart = on_slices(op)
    if counterpart.routes:
        return _of_chosen(op, args, axis.size, skew)
    rows = args[0].detach().flatten(2).select(-1, 0)[0] if counterpart.channels else args[0].detach()[..., 0]

    def per_rank(kind: str, numbers: int) -> int:
        return numbers * axis.size if kind == "all_gather" else numbers

    for kind, numbers in counterpart.forward:
        # Kept under selective recomputation, as what these collectives return is at run time.
        keep(_sent, rows, kind, per_rank(kind, numbers), record)
    result = torch_op(whole_target(op.target))(*args, **own)
    first = result[0] if isinstance(result, (tuple, list)) else result
    if counterpart.backward and first.requires_grad:
        sent = [(kind, per_rank(kind, numbers) * _bytes(rows)) for kind, numbers in counterpart.backward]
        first.register_hook(lambda _: [record(*message) for message in sent] and None)
    return result


def _of_chosen(op: Op, args: tuple[Any, ...], ranks: int, skew: float) -> Any:
    """What a rank computes that has some of the matrices: of the rows that have come by what they choose all, of rows
    that all ranks have those that choose one of its own; the others are zero."""
    (rows, weight, ids), function = args, torch_op(whole_target(op.target))
    if op.kwarg("routed") is True:
        return function(rows, weight, ids.new_empty(len(rows)))
    own = most_rows(len(rows) / ranks, ranks, skew)
    return F.pad(function(rows[:own], weight, ids[:own]), (0, 0, 0, len(rows) - own))


def _sent(rows: Any, kind: str, numbers: int, record: Record) -> Any:
    """What a collective returns that carries a few numbers per row."""
    record(kind, numbers * _bytes(rows))
    with torch.no_grad():
        return rows.new_empty((numbers, *rows.shape))


class _Ring(torch.autograd.Function):
    """Ring attention: as many turns as this rank computes, each against one slice of the keys and values. The backward
    computes the scores again."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Any,
        key: Any,
        value: Any,
        mask: Any,
        turns: int,
        axis: Axis,
        record: Record,
        attention: Callable[..., Any],
    ) -> Any:
        ctx.save_for_backward(query, key, value, mask)
        ctx.turns, ctx.axis, ctx.record, ctx.attention = turns, axis, record, attention
        for _ in range(axis.size - 1):
            record("p2p", _bytes(key) + _bytes(value))
        return [attention(query, key, value, _rows(mask, key)) for _ in range(turns)][-1].clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        query, key, value, mask = ctx.saved_tensors
        for _ in range(ctx.axis.size - 1):
            ctx.record("p2p", 2 * (_bytes(key) + _bytes(value)))
        ctx.record("p2p", _bytes(key) + _bytes(value))
        grads: tuple[Any, ...] = ()
        for _ in range(ctx.turns):
            with torch.enable_grad():
                leaves = [t.detach().requires_grad_() for t in (query, key, value)]
                out = ctx.attention(*leaves, _rows(mask, key))
                grads = torch.autograd.grad(out, leaves, gradients[0])
        own_mask = torch.zeros_like(mask) if mask is not None and ctx.needs_input_grad[3] else None
        return (*grads, own_mask, None, None, None, None)


def _rows(mask: Any, key: Any) -> Any:
    """The part of a mask for the keys of one slice."""
    return None if mask is None else mask.detach()[..., : key.shape[-2]]


def _bytes(tensor: Any) -> int:
    return tensor.numel() * tensor.element_size()
