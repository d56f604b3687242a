"""What a kind of device (`Device.kind`) runs for an operator, where that is not what torch shows of tensors on the CPU.

`CALLS`: operators that torch composes of others on the CPU, or of which it keeps more there, while the device has a
kernel for them. Each is a function of the operator's arguments that calls what the device calls, so that torch itself
says of fake tensors which kernels run, forward and backward, and what these keep.

`LAUNCHES`: kernels that torch dispatches as one and the device launches as several. A line for each launch says what it
reads and writes, parameters by name and results by number, `grad_out input -> 1 2`. `*` marks those that share the
work. A launch that writes a result that nobody asked for is left out, and so is one that needs a parameter, `bias!`,
that is not given. What no line is of is one launch, which reads its operands and writes its results.

Both are of torch 2.11 to 2.13 on CUDA: `aten/src/ATen/native/cuda`, and the composite functions beside it. `make
gpu-check` compares them with what a GPU runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any

from galvatron.ir.ops.targets import parsed

Call = Callable[..., Any]


@dataclass(frozen=True)
class KernelLaunch:
    """One launch of a kernel: the parameters and results that it reads and writes, and those that it is not done
    without."""

    reads: tuple[str, ...]
    writes: tuple[str, ...]
    needs: frozenset[str]
    works: bool


def call_on(kind: str, target: str) -> Call | None:
    """What a kind of device runs for an op; None where that is what torch shows on the CPU."""
    called = parsed(target)
    table = CALLS.get(kind, {})
    return table.get(called.short) or table.get(called.name) if called.namespace in ("aten", "random") else None


@cache
def launches_on(kind: str, kernel: str) -> tuple[KernelLaunch, ...]:
    """The launches of a kernel that torch dispatches; none where it is a single one that reads and writes all."""
    return tuple(map(_parsed, LAUNCHES.get(kind, {}).get(kernel, ())))


def _parsed(line: str) -> KernelLaunch:
    reads, _, writes = line.removeprefix("*").partition("->")
    named = reads.split()
    needs = frozenset(name.removesuffix("!") for name in named if name.endswith("!"))
    return KernelLaunch(
        tuple(name.removesuffix("!") for name in named), tuple(writes.split()), needs, line.startswith("*")
    )


def _dropout(input: Any, p: float, train: bool) -> Any:
    """One kernel, which keeps a mask of bytes."""
    aten = _aten()
    return aten.native_dropout(input, p, True)[0] if train and 0 < p < 1 else aten.dropout(input, p, train)


def _softmax(function: str) -> Call:
    """A softmax that computes halves in 32 bits reads them as they are; only that of float16 does."""

    def call(self: Any, dim: int, dtype: Any = None) -> Any:
        import torch

        if self.dtype is torch.float16 and dtype is torch.float32:
            return getattr(_aten(), f"_{function}")(self, dim, True)
        return getattr(_aten(), function).int(self, dim, dtype)

    return call


def _layer_norm(
    input: Any,
    normalized_shape: Sequence[int],
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Any:
    """Two numbers of each row are kept in at least 32 bits; the CPU keeps them in the type of the input."""
    return _norms().LayerNorm.apply(input, list(normalized_shape), weight, bias, eps)


def _rms_norm(input: Any, normalized_shape: Sequence[int], weight: Any = None, eps: float | None = None) -> Any:
    """One kernel, which keeps its operands and a number for each row in at least 32 bits."""
    if weight is not None and weight.dtype is not input.dtype:
        return _aten().rms_norm(input, normalized_shape, weight, eps)
    return _norms().RMSNorm.apply(input, list(normalized_shape), weight, eps)


@cache
def _norms() -> Any:
    """Norms with what the device's kernels keep; torch has formulas of their gradients for that device alone."""
    import torch

    aten = torch.ops.aten

    class LayerNorm(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any, shape: list[int], weight: Any, bias: Any, eps: float) -> Any:
            result, *statistics = aten.native_layer_norm(x, shape, weight, bias, eps)
            wide = torch.promote_types(x.dtype, torch.float32)
            kept = (s if s.dtype is wide else s.new_empty(s.shape, dtype=wide) for s in statistics)
            ctx.save_for_backward(x, *kept, weight, bias)
            ctx.shape = shape
            return result

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
            x, mean, rstd, weight, bias = ctx.saved_tensors
            needed = [ctx.needs_input_grad[place] for place in (0, 2, 3)]
            made = aten.native_layer_norm_backward(gradients[0], x, ctx.shape, mean, rstd, weight, bias, needed)
            return made[0], None, *made[1:], None

    class RMSNorm(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any, shape: list[int], weight: Any, eps: float | None) -> Any:
            # Below autograd torch hands the operator on as it is, while on the CPU autograd takes it apart.
            with torch._C._AutoDispatchBelowAutograd():
                result, rstd = aten._fused_rms_norm.default(x, shape, weight, eps)
            ctx.save_for_backward(x, weight, rstd)
            ctx.shape = shape
            return result

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
            x, weight, rstd = ctx.saved_tensors
            needed = [ctx.needs_input_grad[0], ctx.needs_input_grad[2]]
            of_x, of_weight = aten._fused_rms_norm_backward(gradients[0], x, ctx.shape, rstd, weight, needed)
            return of_x, None, of_weight, None

    return SimpleNamespace(LayerNorm=LayerNorm, RMSNorm=RMSNorm)


def _attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """The kernel that torch chooses on devices of capability 8.0 and later.

    Flash attention for halves without a mask; cuDNN's, which newer devices prefer, does and keeps the same. Memory
    efficient attention otherwise, where heads are not shared; and where that does not fit either, products and softmax.
    """
    if _suits_flash(query, key, value, attn_mask, is_causal):
        width = query.shape[-1]
        padded = (_padded(t, 8) for t in (query, key, value))
        scale = width**-0.5 if scale is None else scale
        result = _aten()._scaled_dot_product_flash_attention(*padded, dropout_p, is_causal, False, scale=scale)[0]
        return result[..., :width] if width % 8 else result
    if _suits_efficient(query, key, value):
        bias = None if attn_mask is None else _as_bias(attn_mask, query, key)
        trains = any(tensor.requires_grad for tensor in (query, key, value))
        arguments = (query, key, value, bias, trains, dropout_p, is_causal)
        return _aten()._scaled_dot_product_efficient_attention(*arguments, scale=scale)[0]
    return _aten()._scaled_dot_product_attention_math(
        query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
    )[0]


_WIDEST_FLASH_HEAD = 256


def _suits_flash(query: Any, key: Any, value: Any, attn_mask: Any, is_causal: bool) -> bool:
    return (
        _is_dense(query, key, value)
        and query.itemsize == 2
        and attn_mask is None
        and query.shape[-1] == key.shape[-1] == value.shape[-1] <= _WIDEST_FLASH_HEAD
        and not (is_causal and query.shape[-2] != key.shape[-2])
    )


def _suits_efficient(query: Any, key: Any, value: Any) -> bool:
    aligned = 16 // query.itemsize
    return (
        _is_dense(query, key, value)
        and query.itemsize <= 4
        and query.shape[1] == key.shape[1] == value.shape[1]
        and query.shape[-1] == key.shape[-1]
        and query.shape[-1] % aligned == value.shape[-1] % aligned == 0
    )


def _is_dense(query: Any, key: Any, value: Any) -> bool:
    """Four dimensions, and as many samples in each."""
    return query.dim() == key.dim() == value.dim() == 4 and query.shape[0] == key.shape[0] == value.shape[0]


def _padded(tensor: Any, multiple: int) -> Any:
    rest = tensor.shape[-1] % multiple
    return _aten().constant_pad_nd(tensor, [0, multiple - rest]) if rest else tensor


def _as_bias(mask: Any, query: Any, key: Any) -> Any:
    """A mask as this kernel takes it: numbers to add, in rows that are aligned in memory."""
    import torch

    if mask.dtype is torch.bool:
        mask = _aten().where.ScalarSelf(mask, 0.0, mask.new_full((), -torch.inf, dtype=query.dtype))
    keys = mask.shape[-1]
    return _padded(mask, 8)[..., :keys].expand(*query.shape[:2], query.shape[-2], key.shape[-2])


def _aten() -> Any:
    import torch

    return torch.ops.aten


_INDICES = ("indices -> indices",) * 4
"""Indices are sorted, so that what is added to one place is added by one block: passes over the indices alone."""

CALLS: Mapping[str, Mapping[str, Call]] = {
    "cuda": {
        "dropout": _dropout,
        "layer_norm": _layer_norm,
        "rms_norm": _rms_norm,
        "scaled_dot_product_attention": _attention,
        "softmax.int": _softmax("softmax"),
        "log_softmax.int": _softmax("log_softmax"),
    },
    "compiled": {"dropout": _dropout},
}
"""Kind of device → name of an operator, perhaps with an overload → what the device calls for it; `compiled` is for any
device under `torch.compile`."""

BY_DEVICE = frozenset({"batch_norm", "gru", "index", "lstm", "rnn_relu", "rnn_tanh"})
"""Operators that torch composes by where their tensors are, and for which no call stands: they are those of the CPU.
`index` lays out its operands otherwise on the meta device."""

LAUNCHES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "cuda": {
        # norms
        "native_layer_norm_backward": ("grad_out input mean rstd weight -> 0", "grad_out input mean rstd -> 1 2"),
        "_fused_rms_norm_backward": ("grad_out input rstd weight -> 0", "grad_out input rstd -> 1"),
        "native_group_norm": ("input -> 1 2", "1 2 weight bias -> 1 2", "input 1 2 weight bias -> 0"),
        "native_group_norm_backward": (
            "grad_out input -> mean rstd",
            "mean rstd weight -> mean rstd",
            "grad_out input weight -> 0",
            "mean rstd -> 1 2",
        ),
        "_native_batch_norm_legit_functional": (
            "input -> 1 2",
            "input weight bias 1 2 -> 0",
            "running_mean -> 3",
            "running_var -> 4",
        ),
        "native_batch_norm_backward": ("grad_out input -> 1 2", "grad_out input weight -> 0"),
        # a product with the result first: a sum over each row is taken of it
        "_softmax_backward_data": ("grad_output output -> 0", "0 output -> 0"),
        # losses: one number of each row is read and written
        "nll_loss_forward": ("target -> 0",),
        "nll_loss_backward": ("-> 0", "target -> target"),
        # products
        "convolution": ("*input weight -> 0", "bias! 0 -> 0"),
        "convolution_backward": ("*grad_output weight -> 0", "*grad_output input -> 1", "grad_output -> 2"),
        "_scaled_dot_product_flash_attention_backward": (
            "grad_out out -> logsumexp",
            "*grad_out query key value logsumexp -> 0 1 2",
            "query -> 0",
        ),
        "_scaled_dot_product_efficient_attention_backward": (
            "grad_out_ out -> logsumexp",
            "*grad_out_ query key value logsumexp -> 0 1 2",
        ),
        # places
        "constant_pad_nd": ("-> 0", "self -> self"),
        "slice_backward": ("-> 0", "grad_output -> grad_output"),
        "select_backward": ("-> 0", "grad_output -> grad_output"),
        "masked_fill": ("self -> 0", "mask 0 -> 0"),
        "scatter_add": ("self -> 0", "index src -> src"),
        "index_add": ("self -> 0", "index source -> source"),
        "index_put": ("self -> 0", *_INDICES, "indices values -> values"),
        "embedding_dense_backward": ("-> 0", *_INDICES, "indices grad_output -> grad_output"),
    }
}
"""Kind of device → name of a kernel → its launches."""
