"""Attention, and the kernels that compute it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from galvatron.ir.graph import Op
from galvatron.ir.layout import REPLICATE
from galvatron.ir.ops import shapes
from galvatron.ir.ops.call import Call, by_line
from galvatron.ir.ops.notation import OpDims
from galvatron.ir.ops.operator import Draws, OnSlices, Operator
from galvatron.ir.ops.work import Work, attention


def _attention(call: Call) -> OpDims:
    """Queries may be split, except under `is_causal`, which numbers them from 0."""
    rows = "q!" if call["is_causal"] else "q"
    heads = "(h g)" if call["enable_gqa"] else "h"
    return by_line(call, f"b* {heads} {rows} d!, b* h k! d!, b* h k! e!, b* {heads} {rows} k!? -> b* {heads} {rows} e!")


def _op_work(op: Op, tensors: Sequence[Any], _dims: OpDims | None) -> Work:
    query, key, value, *_ = tensors
    return attention(query, key, value, causal=bool(op["is_causal"]))


def _turns(op: Op, ranks: int) -> int:
    """Under a causal mask every rank with folded slices computes 2n + 1 of its 4n quarter blocks, that is about
    (2n + 1) / 4 turns; of plain slices the last one computes all."""
    return (2 * ranks + 5) // 4 if op["is_causal"] and op.kwarg("folded") else ranks


def _flash(
    _out: Any, query: Any, key: Any, value: Any, dropout_p: float = 0.0, is_causal: bool = False, *_: Any, **__: Any
) -> Work:
    return attention(query.shape, key.shape, value.shape, causal=is_causal)


def _masked(
    _out: Any,
    query: Any,
    key: Any,
    value: Any,
    _bias: Any,
    _trains: bool,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **_: Any,
) -> Work:
    return attention(query.shape, key.shape, value.shape, causal=is_causal)


def _masked_backward(_out: Any, _gradient: Any, *operands: Any, **_options: Any) -> Work:
    query, key, value, *_ = operands
    causal = len(operands) > 10 and operands[10]
    return attention(query.shape, key.shape, value.shape, causal=causal, backward=True)


def _cuda_backward(_out: Any, _gradient: Any, *operands: Any, **_options: Any) -> Work:
    query, key, value = operands[:3]
    return attention(query.shape, key.shape, value.shape, causal=operands[10], backward=True)


def _flash_backward(_out: Any, _gradient: Any, *operands: Any, **_options: Any) -> Work:
    query, key, value, _result, _logsumexp, _dropout_p, causal = operands[:7]
    return attention(query.shape, key.shape, value.shape, causal=causal, backward=True)


OPERATORS: dict[str, Operator] = {
    "scaled_dot_product_attention": Operator(
        _attention,
        written="F.scaled_dot_product_attention("
        "query, key, value, attn_mask=, dropout_p=, is_causal=, scale=, enable_gqa=)",
        shapes=shapes.attention,
        dtype="same",
        contracts=True,
        attends=True,
        kept=True,
        anchored=True,
        op_work=_op_work,
        mask="attn_mask",
        short="attention",
        draws=Draws("dropout_p"),
        on_slices=OnSlices(REPLICATE, ring=_turns, folded="told"),
    ),
    "_scaled_dot_product_flash_attention_for_cpu": Operator(work=_flash),
    "_scaled_dot_product_flash_attention_for_cpu_backward": Operator(work=_flash_backward),
    "_scaled_dot_product_flash_attention": Operator(work=_flash),
    "_scaled_dot_product_flash_attention_backward": Operator(work=_cuda_backward),
    "_scaled_dot_product_efficient_attention": Operator(work=_masked),
    "_scaled_dot_product_efficient_attention_backward": Operator(work=_masked_backward),
}
