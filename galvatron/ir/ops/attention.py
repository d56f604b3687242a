"""Attention, and the kernels that compute it."""

from __future__ import annotations

from typing import Any

from galvatron.ir.layout import REPLICATE
from galvatron.ir.ops import shapes
from galvatron.ir.ops.call import Call, by_line
from galvatron.ir.ops.notation import OpDims
from galvatron.ir.ops.operator import Draws, OnSlices, Operator


def _attention(call: Call) -> OpDims:
    """Queries may be split, except under `is_causal`, which numbers them from 0."""
    rows = "q!" if call["is_causal"] else "q"
    heads = "(h g)" if call["enable_gqa"] else "h"
    return by_line(call, f"b* {heads} {rows} d!, b* h k! d!, b* h k! e!, b* {heads} {rows} k!? -> b* {heads} {rows} e!")


def _flop(query: Any, key: Any, value: Any, causal: bool) -> tuple[int, int]:
    """FLOPs of the two products of attention, scores and mixture; half of each under a causal mask."""
    *_, length, width = query.shape
    rows = query.numel() // (length * width)
    share = 2 if causal else 1
    pairs = rows * length * key.shape[-2]
    return 2 * pairs * width // share, 2 * pairs * value.shape[-1] // share


def _flash(query: Any, key: Any, value: Any, dropout_p: float = 0.0, is_causal: bool = False, **_: Any) -> int:
    return sum(_flop(query, key, value, is_causal))


def _flash_backward(
    grad: Any, query: Any, key: Any, value: Any, out: Any, lse: Any, dropout_p: float, is_causal: bool, **_: Any
) -> int:
    """Five products: the scores again, and the gradients of scores, query, key and value (Dao et al. 2022)."""
    scores, mixture = _flop(query, key, value, is_causal)
    return 3 * scores + 2 * mixture


OPERATORS: dict[str, Operator] = {
    "scaled_dot_product_attention": Operator(
        _attention,
        written="F.scaled_dot_product_attention("
        "query, key, value, attn_mask=, dropout_p=, is_causal=, scale=, enable_gqa=)",
        shapes=shapes.attention,
        contracts=True,
        kept=True,
        anchored=True,
        dense=True,
        mask="attn_mask",
        short="attention",
        draws=Draws("dropout_p"),
        on_slices=OnSlices(REPLICATE, ring=True),
    ),
    "_scaled_dot_product_flash_attention_for_cpu": Operator(flop=_flash),
    "_scaled_dot_product_flash_attention_for_cpu_backward": Operator(flop=_flash_backward),
}
