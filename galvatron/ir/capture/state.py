"""The state of a model: each parameter and buffer once, under its first name."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from galvatron.errors import CaptureError
from galvatron.ir.interpreter import DTYPE_OF
from galvatron.ir.program import State
from galvatron.ir.types import TensorType


def state_of(model: nn.Module) -> tuple[State, ...]:
    """Parameters, then buffers, in the model's order; the other names of a tied one are its aliases."""
    names: dict[int, list[str]] = {}
    tensors: dict[int, torch.Tensor] = {}
    for name, tensor in _named_tensors(model):
        names.setdefault(id(tensor), []).append(name)
        tensors[id(tensor)] = tensor
    return tuple(_state(tensors[key], first, tuple(others)) for key, (first, *others) in names.items())


def _named_tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _state(tensor: torch.Tensor, name: str, aliases: tuple[str, ...]) -> State:
    is_parameter = isinstance(tensor, nn.Parameter)
    if is_parameter and tensor.requires_grad and tensor.is_complex():
        raise CaptureError(
            f"parameter {name!r} is complex, which optimizers of slices do not train: keep it as a real parameter with "
            "a last dimension of 2, and read it through torch.view_as_complex"
        )
    return State(
        name,
        tensor_type_of(tensor, name),
        kind="parameter" if is_parameter else "buffer",
        trainable=is_parameter and tensor.requires_grad,
        aliases=aliases,
    )


def tensor_type_of(tensor: torch.Tensor, name: str) -> TensorType:
    """The IR type of a tensor of fixed shape.

    Raises:
        CaptureError: its dtype is outside the IR.
    """
    if tensor.dtype not in DTYPE_OF:
        raise CaptureError(f"{name!r} has dtype {tensor.dtype}, which Galvatron does not support")
    return TensorType(DTYPE_OF[tensor.dtype], tuple(tensor.shape))
