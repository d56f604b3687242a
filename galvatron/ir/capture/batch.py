"""Example inputs: which are tensors of the batch, what they are called, and which of them hold samples."""

from __future__ import annotations

import inspect
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from galvatron.errors import CaptureError, did_you_mean
from galvatron.ir.capture.state import tensor_type_of
from galvatron.ir.types import BATCH, SIZE_NAMES, Length, TensorType

BatchDims = Mapping[str, int | None]
"""What the user says of inputs by name: 0, its dim 0 counts samples; None, it has none."""

Dynamic = bool | Mapping[str, bool | Mapping[int, str]]
"""What else may be another in every step, by the name of its input: True, a Python number, or of a tensor every size
that the model leaves free; dimensions of a tensor with a name for the size, alike for those that are always equal. True
alone says so of all tensors."""

Place = tuple[str, int]
"""A dimension of an input."""


@dataclass(frozen=True)
class Batch:
    """One global batch of `size` samples: its `tensors`, `constants` (flags and the like) and `numbers`, which change
    from step to step, by forward name. `free` names the sizes of dimensions that do, beside the number of samples;
    `asked` are the tensors of which it is asked which sizes may.

    `said` is what the user says of inputs. `batched` are those whose dim 0 counts the samples, known once the model
    has been traced; all others are the same for every sample.
    """

    tensors: Mapping[str, torch.Tensor]
    constants: Mapping[str, Any]
    size: int
    said: BatchDims = field(default_factory=dict)
    batched: frozenset[str] = frozenset()
    numbers: Mapping[str, int | float] = field(default_factory=dict)
    free: Mapping[Place, str] = field(default_factory=dict)
    asked: frozenset[str] = frozenset()

    def may_be_batched(self, name: str) -> bool:
        """Whether dim 0 may count samples, as far as can be known before the model is traced."""
        tensor = self.tensors[name]
        if (name, 0) in self.free:
            return False
        if name in self.said:
            return self.said[name] is not None
        return tensor.dim() > 0 and (tensor.shape[0] > 1 or self.size == 1)

    def with_batched(self, names: frozenset[str]) -> Batch:
        """The batch of which it is known what holds samples."""
        size = next(self.tensors[name].shape[0] for name in self.tensors if name in names)
        return replace(self, batched=names, size=size)

    def possible_lengths(self) -> list[Place]:
        """The dimensions of the tensors that are asked about which do not count samples, as far as is known."""
        return [
            (name, dim)
            for name, tensor in self.tensors.items()
            for dim, size in enumerate(tensor.shape)
            if name in self.asked and size > 1 and (dim or not self.may_be_batched(name) or size != self.size)
        ]

    def is_free(self, name: str, dim: int) -> bool:
        """Whether the size of a dimension is traced as any."""
        return (name, dim) in self.free or (dim == 0 and self.may_be_batched(name))

    def type_of(self, name: str, lengths: Mapping[str, Length]) -> TensorType:
        """The IR type of a tensor, in terms of the batch size and lengths."""
        type_ = tensor_type_of(self.tensors[name], name)
        shape = [lengths[self.free[name, d]] if (name, d) in self.free else n for d, n in enumerate(type_.shape)]
        return type_.with_shape((BATCH, *shape[1:]) if name in self.batched else tuple(shape))

    def stand_ins(self, device: torch.device) -> dict[str, torch.Tensor]:
        """Fresh tensors of the same types, and of the numbers, for tracing, which reads no values.

        Fresh, because torch merges inputs that are one tensor object; at least two samples, because torch treats a size
        of one as a constant.
        """

        def shape(name: str, tensor: torch.Tensor) -> tuple[int, ...]:
            return tuple(max(size, 2) if self.is_free(name, dim) else size for dim, size in enumerate(tensor.shape))

        made = {n: torch.empty(shape(n, t), dtype=t.dtype, device=device) for n, t in self.tensors.items()}
        return made | {name: torch.tensor(number, dtype=_WIDEST[type(number)]) for name, number in self.numbers.items()}


_WIDEST = {int: torch.int64, float: torch.float64}
"""In which a Python number is traced: `item()` gives one that has any value."""


def read_batch(
    model: nn.Module,
    example_inputs: Mapping[str, Any] | tuple[Any, ...],
    batch_dims: BatchDims | None = None,
    dynamic: Dynamic | None = None,
) -> Batch:
    """The batch in `example_inputs`, positional inputs named by the signature of the model's forward.

    The batch size is the size of dim 0 that most tensors share (the first tensor's, if equally many), unless the user
    says which inputs have samples.

    Raises:
        CaptureError: the inputs do not fit the signature, are nested, or hold no batch, or what is said of them does
            not fit them.
    """
    named = _by_name(model, example_inputs)
    numbers, free, asked = _dynamic(dynamic, named)
    tensors: dict[str, torch.Tensor] = {}
    constants: dict[str, Any] = {}
    for name, value in named.items():
        if name in numbers:
            continue
        if isinstance(value, torch.Tensor):
            tensors[name] = value
        elif value is None or isinstance(value, (bool, int, float, str)):
            constants[name] = value
        else:
            raise CaptureError(
                f"example input {name!r} is a {type(value).__name__}: "
                "inputs must be tensors (or plain flags); wrap the model so that its forward takes tensors"
            )
    if batch_dims is not None and not isinstance(batch_dims, Mapping):
        raise CaptureError(f"batch_dims is a mapping of input names to 0 or None, not {type(batch_dims).__name__}")
    said = dict(batch_dims or {})
    _check_said(said, tensors)
    told = [t for name, t in tensors.items() if said.get(name) == 0]
    sizes = Counter(t.shape[0] for t in told or (t for n, t in tensors.items() if t.dim() and n not in said))
    if not sizes:
        raise CaptureError(
            "example_inputs hold no tensor with a batch dimension: give one global batch, batch on dim 0"
        )
    if told and len(sizes) > 1:
        raise CaptureError(f"batch_dims: inputs that hold samples have {' and '.join(map(str, sizes))} of them")
    size = sizes.most_common(1)[0][0]
    if size == 0:
        raise CaptureError("example_inputs are a batch of 0 samples: give one as it is trained on")
    return Batch(tensors, constants, size, said, numbers=numbers, free=free, asked=asked)


def _dynamic(
    dynamic: Dynamic | None, named: Mapping[str, Any]
) -> tuple[dict[str, int | float], dict[Place, str], frozenset[str]]:
    """The inputs that are said to be numbers which change, the dimensions whose sizes do, and the tensors of which all
    sizes may."""
    tensors = [name for name, value in named.items() if isinstance(value, torch.Tensor)]
    if isinstance(dynamic, bool) or dynamic is None:
        return {}, {}, frozenset(tensors if dynamic else ())
    if not isinstance(dynamic, Mapping):
        raise CaptureError(f"dynamic is True, or a mapping of input names, not {type(dynamic).__name__}")
    free: dict[Place, str] = {}
    for name, said in dynamic.items():
        if name not in named:
            raise CaptureError(f"dynamic names {name!r}, which is no input; {did_you_mean(name, named)}")
        value = named[name]
        if isinstance(said, Mapping):
            free.update(_lengths(name, value, said))
        elif said is not True:
            raise CaptureError(
                f"dynamic[{name!r}] is {said!r}: True says that a number, or the sizes of a tensor, may be others in "
                "every step, and a mapping such as {1: 'S'} so of some dimensions of a tensor"
            )
        elif name not in tensors:
            _check_number(name, value)
    sizes: dict[str, int] = {}
    for (name, dim), length in free.items():
        size = named[name].shape[dim]
        if sizes.setdefault(length, size) != size:
            raise CaptureError(f"dynamic: {length} is {sizes[length]}, but {name!r} has {size} on dim {dim}")
    changing = [name for name in named if dynamic.get(name) is True]
    return {n: named[n] for n in changing if n not in tensors}, free, frozenset(changing).intersection(tensors)


def _lengths(name: str, value: Any, said: Mapping[int, str]) -> Iterator[tuple[Place, str]]:
    """The dimensions of a tensor whose sizes change, with the names of these."""
    if not isinstance(value, torch.Tensor):
        raise CaptureError(f"dynamic[{name!r}] names dimensions, but the input is a {type(value).__name__}, no tensor")
    for dim, length in said.items():
        if type(dim) is not int or not -value.dim() <= dim < value.dim():
            raise CaptureError(f"dynamic[{name!r}] names dim {dim!r} of a tensor with {value.dim()} dimensions")
        if dim < 0 and dim + value.dim() in said:
            raise CaptureError(f"dynamic[{name!r}] names one dimension twice, as {dim + value.dim()} and as {dim}")
        if not isinstance(length, str) or not length.isidentifier() or length in SIZE_NAMES:
            raise CaptureError(
                f"dynamic[{name!r}][{dim}] is {length!r}: a size is named by an identifier such as 'S', other than "
                f"{', '.join(SIZE_NAMES)}"
            )
        if value.shape[dim] < 2:
            raise CaptureError(
                f"dynamic[{name!r}]: the example has size {value.shape[dim]} on dim {dim}; give 2 or more"
            )
        yield (name, dim % value.dim()), length


def _check_number(name: str, value: Any) -> None:
    if isinstance(value, bool):
        raise CaptureError(
            f"dynamic[{name!r}]: a truth value chooses what forward computes, and a program computes one thing: "
            "compile once for each value, or pass 0.0 or 1.0 and multiply by it"
        )
    if type(value) not in _WIDEST:
        raise CaptureError(
            f"dynamic[{name!r}]: the example input is a {type(value).__name__}, and only an int, a float or the sizes "
            "of a tensor may change"
        )
    if not math.isfinite(value):
        raise CaptureError(f"dynamic[{name!r}]: the example {value!r} is no finite number")


def _check_said(said: BatchDims, tensors: Mapping[str, torch.Tensor]) -> None:
    for name, dim in said.items():
        if name not in tensors:
            raise CaptureError(f"batch_dims names {name!r}, which is no tensor input; {did_you_mean(name, tensors)}")
        if dim is not None and (isinstance(dim, bool) or dim != 0):
            raise CaptureError(f"batch_dims[{name!r}] is {dim!r}: samples are counted on dim 0, or None for no samples")
        if dim == 0 and tensors[name].dim() == 0:
            raise CaptureError(f"batch_dims[{name!r}] is 0, but the input has no dimensions")


def _advice(signature: inspect.Signature, example_inputs: Mapping[str, Any] | tuple[Any, ...]) -> str:
    """What to do where inputs are given that forward does not take, such as the labels of a loss function."""
    if not isinstance(example_inputs, Mapping) or not set(example_inputs) - set(signature.parameters):
        return ""
    return (
        "; what only the loss needs, such as labels, must be an argument of forward too: "
        "wrap the model in a module whose forward takes it and returns the loss"
    )


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
        raise CaptureError(
            f"example_inputs do not fit {type(model).__name__}.forward{signature}: {error}"
            f"{_advice(signature, example_inputs)}"
        ) from error
    for name, value in named.items():
        if signature.parameters[name].kind is inspect.Parameter.VAR_POSITIONAL and value:
            raise CaptureError(
                f"{type(model).__name__}.forward takes *{name}: give example_inputs as a mapping by name"
            )
    return dict(named)
