"""Example inputs: which are tensors of the batch, what they are called, and how many samples they hold."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from galvatron.errors import CaptureError
from galvatron.ir.capture.state import tensor_type_of
from galvatron.ir.types import BATCH, TensorType


@dataclass(frozen=True)
class Batch:
    """One global batch of `size` samples: its `tensors` and `constants` (flags and the like) by forward name."""

    tensors: Mapping[str, torch.Tensor]
    constants: Mapping[str, Any]
    size: int

    def is_batched(self, name: str) -> bool:
        """Whether dim 0 of a tensor counts the samples; other tensors are the same for every sample."""
        tensor = self.tensors[name]
        return tensor.dim() > 0 and tensor.shape[0] == self.size

    def type_of(self, name: str) -> TensorType:
        """The IR type of a tensor, in terms of the batch size."""
        type_ = tensor_type_of(self.tensors[name], name)
        return type_.with_shape((BATCH, *type_.shape[1:])) if self.is_batched(name) else type_

    def stand_ins(self, device: torch.device) -> dict[str, torch.Tensor]:
        """Fresh tensors of the same types for tracing, which reads no values.

        Fresh, because torch merges inputs that are one tensor object; at least two samples, because torch treats a size
        of one as a constant.
        """
        size = max(self.size, 2)
        shapes = {n: (size, *t.shape[1:]) if self.is_batched(n) else tuple(t.shape) for n, t in self.tensors.items()}
        return {n: torch.empty(shapes[n], dtype=t.dtype, device=device) for n, t in self.tensors.items()}


def read_batch(model: nn.Module, example_inputs: Mapping[str, Any] | tuple[Any, ...]) -> Batch:
    """The batch in `example_inputs`, positional inputs named by the signature of the model's forward.

    The batch size is the size of dim 0 that most tensors share (the first tensor's, if equally many).

    Raises:
        CaptureError: the inputs do not fit the signature, are nested, or hold no batch.
    """
    named = _by_name(model, example_inputs)
    tensors: dict[str, torch.Tensor] = {}
    constants: dict[str, Any] = {}
    for name, value in named.items():
        if isinstance(value, torch.Tensor):
            tensors[name] = value
        elif value is None or isinstance(value, (bool, int, float, str)):
            constants[name] = value
        else:
            raise CaptureError(
                f"example input {name!r} is a {type(value).__name__}: "
                "inputs must be tensors (or plain flags); wrap the model so that its forward takes tensors"
            )
    sizes = Counter(tensor.shape[0] for tensor in tensors.values() if tensor.dim())
    if not sizes:
        raise CaptureError(
            "example_inputs hold no tensor with a batch dimension: give one global batch, batch on dim 0"
        )
    return Batch(tensors, constants, sizes.most_common(1)[0][0])


def _by_name(model: nn.Module, example_inputs: Mapping[str, Any] | tuple[Any, ...]) -> dict[str, Any]:
    signature = inspect.signature(model.forward)
    try:
        if isinstance(example_inputs, Mapping):
            signature.bind(**example_inputs)
            return dict(example_inputs)
        if isinstance(example_inputs, (tuple, list)):
            named = signature.bind(*example_inputs).arguments
        else:
            raise CaptureError(
                f"example_inputs is a {type(example_inputs).__name__}: "
                "give a mapping of forward keyword arguments or a tuple of positional ones"
            )
    except TypeError as error:
        raise CaptureError(f"example_inputs do not fit {type(model).__name__}.forward{signature}: {error}") from error
    for name, value in named.items():
        if signature.parameters[name].kind is inspect.Parameter.VAR_POSITIONAL and value:
            raise CaptureError(
                f"{type(model).__name__}.forward takes *{name}: give example_inputs as a mapping by name"
            )
    return dict(named)
