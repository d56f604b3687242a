"""Capture under a precision: the model as if `model.to(dtype)` had been called on it, and what stays in 32 bits.

Only then are the model's own decisions about types (upcasts in norms, rotary tables, `.to(x.dtype)`) those of a model
in that type. While it is traced, floating parameters are stand-ins of the type, without values or memory; buffers keep
theirs, since a rotary table in 16 bits is no table. `ComputeType` looks after the three things that `model.to` leaves
to the user: batch inputs, losses, and products of unequal types.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from galvatron.errors import CaptureError
from galvatron.ir.capture.running import here, tensors_in
from galvatron.ir.capture.stand_ins import standing_in
from galvatron.ir.ops.operator import UNKNOWN
from galvatron.ir.ops.schemas import schema_of
from galvatron.ir.ops.table import OPERATORS, named


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_PRODUCTS = frozenset(named(lambda operator: operator.kept)) | _names(
    "__matmul__ __rmatmul__ mv dot inner addmv tensordot"
)
"""Functions whose floating operands must have one type wherever they run."""

_ALIKE = _PRODUCTS | _names("""
    cdist layer_norm group_norm batch_norm instance_norm prelu lstm gru rnn_tanh rnn_relu multi_head_attention_forward
""")
"""Functions whose floating operands must have one type; traced on fake tensors some of them take any."""

_LOSSES = _names("""
    cross_entropy nll_loss log_softmax logsumexp mse_loss l1_loss smooth_l1_loss huber_loss kl_div binary_cross_entropy
    binary_cross_entropy_with_logits poisson_nll_loss gaussian_nll_loss margin_ranking_loss hinge_embedding_loss
    soft_margin_loss multi_margin_loss multilabel_margin_loss multilabel_soft_margin_loss cosine_embedding_loss
    triplet_margin_loss triplet_margin_with_distance_loss ctc_loss
""")
"""Losses and what hand-written ones are made of: computed in 32 bits."""

_TOTALS = frozenset(("sum", "mean"))
"""Reductions whose results are kept in 32 bits when they are scalars."""


@contextmanager
def rounded(model: nn.Module, dtype: torch.dtype, *, buffers: bool) -> Iterator[None]:
    """Inside the `with` block the floating parameters of the model, with `buffers` its buffers too, are stand-ins of
    another element type; tied ones stay tied."""

    def stand_in(tensor: torch.Tensor) -> torch.Tensor | None:
        if not tensor.is_floating_point() or not (buffers or isinstance(tensor, nn.Parameter)):
            return None
        with FakeTensorMode():
            return torch.empty(tensor.shape, dtype=dtype, device=tensor.device)

    with standing_in(model, stand_in):
        yield


class ProductsOfOneType(TorchFunctionMode):
    """Inside the `with` block products of tensors of several types are refused, which fake tensors do not notice."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in _PRODUCTS and not _is_autocast(args) and _has_several(func, args, kwargs or {}):
            raise _several(name, (args, kwargs))
        return func(*args, **(kwargs or {}))


def _has_several(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether floating operands that must have one type have several."""
    operator = OPERATORS.get(func.__name__, UNKNOWN)
    operands: Any = args, kwargs
    if operator.mask or operator.updated:
        given = _by_parameter(func, args, kwargs)
        # Attention takes a mask of 32 bits beside queries of 16, and a batch norm that trains keeps statistics of 32.
        apart = {operator.mask, *(operator.updated if given.get(operator.updates) else ())}
        operands = [argument for parameter, argument in given.items() if parameter not in apart]
    return len({t.dtype for t in tensors_in(operands) if t.is_floating_point()}) > 1


def _by_parameter(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a function of Python, or of an operator, by the parameters that it has."""
    try:
        names = list(inspect.signature(func).parameters)
    except ValueError:
        names = [parameter.name for parameter in schema_of(f"aten.{func.__name__}.default").parameters]
    return dict(zip(names, args, strict=False)) | kwargs


def _several(name: str, operands: Any) -> CaptureError:
    found = ", ".join(sorted({str(t.dtype) for t in tensors_in(operands) if t.is_floating_point()}))
    advice = "cast one of them, as in x.to(self.weight.dtype)"
    return CaptureError(f"{here()}{name.strip('_')} of tensors of several types ({found}): {advice}")


class ComputeType(TorchFunctionMode):
    """Inside the `with` block, values of `dtype` have losses in 32 bits, and batch inputs of another floating type are
    cast to `dtype` where they first meet a weight.

    Args:
        inputs: the tensors of the batch.
    """

    def __init__(self, dtype: torch.dtype, inputs: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self._dtype = dtype
        # What is computed from inputs alone, by id: the tensors are held so that no id is given twice.
        self._from_inputs = {id(t): t for t in inputs if self._is_other(t)}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        arguments: tuple[tuple[Any, ...], dict[str, Any]] = args, kwargs or {}
        name = getattr(func, "__name__", "")
        if name in _LOSSES:
            arguments = pytree.tree_map_only(torch.Tensor, self.wide, arguments)
        elif name in _ALIKE and not _is_autocast(args):
            arguments = self._alike(func, *arguments)
        positional, keywords = arguments
        result = func(*positional, **keywords)
        if name in _TOTALS and "dtype" not in keywords and self._is_scalar(result):
            result = func(*positional, **keywords, dtype=torch.float32)
        if self._from_inputs and any(id(t) in self._from_inputs for t in tensors_in(arguments)):
            self._from_inputs.update((id(t), t) for t in tensors_in(result) if self._is_other(t))
        return result

    def is_of_inputs(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor is cast where it meets a weight."""
        return id(tensor) in self._from_inputs

    def wide(self, value: torch.Tensor) -> torch.Tensor:
        """The value in 32 bits if it is of the compute type, else as it is."""
        return value.float() if value.dtype == self._dtype else value

    def _alike(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments with one floating type among them.

        Raises:
            CaptureError: they have several, and it is not batch inputs that make the difference.
        """

        def cast(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.to(self._dtype) if id(tensor) in self._from_inputs else tensor

        if _has_several(func, args, kwargs):
            args, kwargs = pytree.tree_map_only(torch.Tensor, cast, (args, kwargs))
        if _has_several(func, args, kwargs):
            raise _several(func.__name__, (args, kwargs))
        return args, kwargs

    def _is_other(self, tensor: torch.Tensor) -> bool:
        return tensor.is_floating_point() and tensor.dtype != self._dtype

    def _is_scalar(self, result: Any) -> bool:
        return isinstance(result, torch.Tensor) and result.dim() == 0 and result.dtype == self._dtype


def _is_autocast(args: tuple[Any, ...]) -> bool:
    """Whether the model is in a region of autocast, which makes types equal by itself."""
    device = next((t.device.type for t in tensors_in(args)), "cpu")
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
