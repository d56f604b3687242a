"""FLOPs of matmul-like kernels: the one table of formulas. Every other kernel is bound by the memory it touches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry

_aten = torch.ops.aten


def _attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, causal: bool) -> tuple[int, int]:
    """FLOPs of the two products of attention, scores and mixture; half of each under a causal mask."""
    *_, length, width = query.shape
    rows = query.numel() // (length * width)
    share = 2 if causal else 1
    pairs = rows * length * key.shape[-2]
    return 2 * pairs * width // share, 2 * pairs * value.shape[-1] // share


def _flash(query: Any, key: Any, value: Any, dropout_p: float = 0.0, is_causal: bool = False, **_: Any) -> int:
    return sum(_attention(query, key, value, is_causal))


def _flash_backward(
    grad: Any, query: Any, key: Any, value: Any, out: Any, lse: Any, dropout_p: float, is_causal: bool, **_: Any
) -> int:
    """Five products: the scores again, and the gradients of scores, query, key and value (Dao et al. 2022)."""
    scores, mixture = _attention(query, key, value, is_causal)
    return 3 * scores + 2 * mixture


def _grouped_mm(a: torch.Tensor, b: torch.Tensor, offsets: Any = None, *_: Any, **__: Any) -> int:
    """Each row of `a` meets one matrix of the group; two 2-D operands share out the contraction instead."""
    if a.dim() == 2 and b.dim() == 2:
        return 2 * a.numel() * b.shape[-1]
    return 2 * a.numel() * b.shape[-1] if a.dim() == 2 else 2 * b.numel() * a.shape[-2]


_OWN: dict[Any, Callable[..., int]] = {
    _aten._scaled_dot_product_flash_attention_for_cpu: _flash,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _flash_backward,
    _aten._grouped_mm: _grouped_mm,
}
"""Kernels that torch's own table lacks."""


def kernel_flop(kernel: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> int:
    """FLOPs of one call of a dispatched kernel; 0 for a kernel that is no matmul, attention or convolution.

    Formulas: `torch.utils.flop_counter` (a multiply-add is two FLOPs) and the few kernels above.
    """
    packet = kernel._overloadpacket
    if packet in _OWN:
        return int(_OWN[packet](*args, **kwargs))
    formula = flop_registry.get(packet)
    return int(formula(*args, **kwargs, out_val=out)) if formula else 0
