"""The work of the kernels that torch dispatches, from the shapes of their arguments; other kernels have none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from galvatron.machine.work import Work, attention, convolution, product

_aten = torch.ops.aten


def kernel_work(kernel: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Work | None:
    """The arithmetic of one call of a dispatched kernel: of products, attention and convolutions."""
    find = _WORK.get(kernel._overloadpacket)
    return find(out, *args, **kwargs) if find else None


def _product(_out: Any, a: Tensor, b: Tensor, *_: Any, **__: Any) -> Work:
    """Of matrices, in groups or not; where only one factor is in groups, the other is shared out over them."""
    count = b.shape[0] if a.dim() == b.dim() == 3 else 1
    return product(count, a.shape[-2], b.shape[-1], a.shape[-1])


def _added(out: Any, _term: Tensor, *factors: Any, **options: Any) -> Work:
    return _product(out, *factors, **options)


def _convolution(out: Tensor, input_: Tensor, weight: Tensor, *settings: Any) -> Work:
    _bias, _stride, _padding, _dilation, transposed, _output_padding, groups = settings
    return convolution(input_.shape, weight.shape, out.shape, groups, transposed=transposed)


def _convolution_backward(_out: Any, gradient: Tensor, input_: Tensor, weight: Tensor, *settings: Any) -> Work:
    """As many such products as factors have a gradient."""
    *same, mask = settings
    count, *sizes = _convolution(gradient, input_, weight, *same).sizes
    return product(sum(mask[:2]) * count, *sizes)


def _flash(
    _out: Any, query: Tensor, key: Tensor, value: Tensor, dropout_p: float = 0.0, is_causal: bool = False, **_: Any
) -> Work:
    return attention(query.shape, key.shape, value.shape, causal=is_causal)


def _flash_backward(_out: Any, _gradient: Tensor, *operands: Any, **_options: Any) -> Work:
    query, key, value, _result, _logsumexp, _dropout_p, causal = operands[:7]
    return attention(query.shape, key.shape, value.shape, causal=causal, backward=True)


_WORK: dict[Any, Callable[..., Work]] = {
    _aten.mm: _product,
    _aten.bmm: _product,
    _aten._grouped_mm: _product,
    _aten.addmm: _added,
    _aten.baddbmm: _added,
    _aten.convolution: _convolution,
    _aten.convolution_backward: _convolution_backward,
    _aten._scaled_dot_product_flash_attention_for_cpu: _flash,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _flash_backward,
}
