"""What a call of an op does, one act after the other: kernels, storages, what is saved, read and given back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from galvatron.costs.watch import ObservedEvent


class Form(NamedTuple):
    """What kernels see of a tensor: its type, how it lies in a storage of so many bytes, and if it has a gradient."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    storage_bytes: int
    differentiable: bool

    @staticmethod
    def of(tensor: torch.Tensor) -> Form:
        size = tensor.untyped_storage().nbytes()
        return Form(tensor.dtype, tuple(tensor.shape), tensor.stride(), size, tensor.requires_grad)

    @staticmethod
    def laid_out(dtype: torch.dtype, shape: Sequence[int], stride: Sequence[int]) -> Form:
        """A tensor without a gradient that has its storage for itself."""
        last = sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
        size = (last + 1) * dtype.itemsize if math.prod(shape) else 0
        return Form(dtype, tuple(shape), tuple(stride), size, False)

    @staticmethod
    def contiguous(dtype: torch.dtype, shape: Sequence[int]) -> Form:
        """One whose elements lie one behind the other."""
        stride = [math.prod(max(size, 1) for size in shape[i + 1 :]) for i in range(len(shape))]
        return Form.laid_out(dtype, shape, stride)

    def tensor(self, device: str) -> torch.Tensor:
        """Such a tensor, without memory."""
        storage = torch.empty(self.storage_bytes // self.dtype.itemsize, dtype=self.dtype, device=device)
        return storage.as_strided(self.shape, self.stride).requires_grad_(self.differentiable)


Forms = tuple[Form | None, ...]
"""Of gradients, None where there is none."""


class Dispatched(NamedTuple):
    """The process dispatches what launches something, or a view."""

    view: bool


class Made(NamedTuple):
    """A storage is there. Storages have numbers of the call, first those of its operands."""

    storage: int
    size_bytes: int


class Gone(NamedTuple):
    """The call needs a storage no more."""

    storage: int


class Saved(NamedTuple):
    """Autograd saves a tensor for the backward, as the `place`-th of the call."""

    place: int
    storage: int
    dtype: torch.dtype


class Read(NamedTuple):
    """The backward reads what was saved."""

    place: int


class Released(NamedTuple):
    """The backward needs it no more."""

    place: int


class Gave(NamedTuple):
    """All is added up of an operand's gradient. `tensor` tells tensors apart: those that were there come first."""

    operand: int
    storage: int
    form: Form
    tensor: int


class Step(NamedTuple):
    """What follows up to the next `StepEnd` runs in the forward only, under selective recomputation."""


class StepEnd(NamedTuple):
    """The end of such a step, which keeps these storages."""

    storages: tuple[int, ...]


Act = ObservedEvent | Dispatched | Made | Gone | Saved | Read | Released | Gave | Step | StepEnd


class Result(NamedTuple):
    """A result of a call: its storage, its form, and the number of the operand that it is, if it is one."""

    storage: int
    form: Form
    operand: int | None


@dataclass(frozen=True)
class Backward:
    """The backward of a call, for gradients of some forms; `gradients` are the numbers of their storages, by place."""

    acts: tuple[Act, ...]
    gradients: dict[int, int]
