"""Values that follow from nothing but the code of forward, such as those of a mask that it makes of positions alone.

While a model is traced no tensor has values. But what is computed from numbers of Python alone is the same in every
step, so that forward may ask for its values: whether a mask is a causal one, how large the largest of some offsets is.

Some values are known whatever the sizes are: a mask of ones for every sample is made of ones, and positions that are
repeated for every sample are those of one.

So are small buffers that are not saved with the model: numbers of its configuration that are kept as tensors, such as
the stride of a convolution, from which forward computes sizes. What is saved is not among them: it may be loaded anew.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from galvatron.errors import CaptureError
from galvatron.ir.capture.running import here, tensors_in
from galvatron.ir.capture.tracing import storage_of, version_of

_READS = frozenset(
    ("__float__", "__format__", "__index__", "__int__", "allclose", "equal", "is_nonzero", "item", "tolist")
)
"""Functions that give values of tensors to Python."""

_MOST = 1 << 22
"""How many elements a tensor may have whose values are kept."""

MOST_OF_BUFFER = 1024
"""How many elements a buffer may have whose values are."""

_FILLS = frozenset(("new_ones", "new_zeros", "ones", "zeros"))
"""Functions of sizes and types whose elements are all alike."""

_SPREADS = frozenset(("expand", "repeat", "tile"))
"""Functions of one tensor and of sizes that give what it has along dimensions of one element again and again."""

_ALIKE = frozenset((
    "__add__", "__and__", "__eq__", "__getitem__", "__invert__", "__mul__", "__ne__", "__neg__", "__or__", "__radd__",
    "__rmul__", "__rsub__", "__sub__", "add", "all", "amax", "amin", "any", "bitwise_and", "bitwise_not", "bitwise_or",
    "bool", "clone", "contiguous", "detach", "double", "eq", "float", "ge", "gt", "half", "int", "le", "logical_and",
    "logical_not", "logical_or", "long", "lt", "mul", "ne", "neg", "sub", "to", "type", "unsqueeze",
))  # fmt: skip
"""Functions of which elements along a dimension are alike where those of the operands are, however many there are."""

_ALONG = {"cumsum": 1, "diff": 2}
"""Functions along the dimension that is such an argument, the last where it is left out: elements along others are."""

_TAKES_SIZES = frozenset(("expand", "pad", "repeat", "reshape", "tile", "view"))
"""Functions of one tensor and of sizes, which may be tensors of one number."""

_DEVICE = re.compile(r"[a-z]+(:\d+)?")


class FixedBuffers:
    """The values of the buffers of a model that are constants of it: small, not saved with it, and not written.

    Attributes:
        read: those of which forward has read values, with the head of an error message about the first line that did.
    """

    def __init__(self, model: nn.Module) -> None:
        buffers = dict(model.named_buffers())
        saved = {id(tensor) for tensor in model.state_dict(keep_vars=True).values()}
        every = (*buffers.values(), *model.parameters())
        storages = Counter(storage._cdata for tensor in every if (storage := storage_of(tensor)) is not None)
        self._values = {
            name: tensor.detach().to("cpu", copy=True)
            for name, tensor in buffers.items()
            if id(tensor) not in saved
            and tensor.numel() <= MOST_OF_BUFFER
            and not (tensor.is_meta or isinstance(tensor, FakeTensor))
            and (storage := storage_of(tensor)) is not None
            and storages[storage._cdata] == 1
        }
        self.read: dict[str, str] = {}

    def of(self, model: nn.Module) -> list[tuple[torch.Tensor, _Twin]]:
        """The buffers of the model while it is traced, each with the values that it has."""
        now = dict(model.named_buffers())
        with torch._C.DisableTorchFunction(), _disable_current_modes():
            copies = {name: value.clone() for name, value in self._values.items() if now[name].dtype == value.dtype}
        return [(now[name], _Twin(now[name], value, frozenset([name]))) for name, value in copies.items()]

    def check_not_written(self, written: Iterable[str]) -> None:
        """Refuses a model of which forward writes what it reads the values of, so that the next step reads others.

        Raises:
            CaptureError: names the buffer, and the line that reads it.
        """
        for name in written:
            if name in self.read:
                raise CaptureError(
                    f"{self.read[name]}control flow or a size depends on the values of the buffer {name!r}, which "
                    "forward writes, so that they change from step to step: use tensor operations such as torch.where"
                )


@dataclass(frozen=True)
class _Twin:
    """The values of a tensor that is traced: `value`, of the type of `tensor`, which is held so that no id is given
    twice, and of its shape, but for sizes that are symbols: there it has one of the elements, which are all alike. They
    follow from those of some `buffers`."""

    tensor: torch.Tensor
    value: torch.Tensor
    buffers: frozenset[str] = frozenset()


@dataclass(frozen=True)
class _Sum:
    """The sum of all elements of a tensor of constants: `value`, in sizes, while `tensor` has this `version`."""

    tensor: torch.Tensor
    version: int
    value: int | torch.SymInt
    buffers: frozenset[str]


class ConstantsHaveValues(TorchFunctionMode):
    """Inside the `with` block a forward may read the values of constants: next to each that it makes it is made once
    more, in memory.

    Args:
        model: while it is traced.
        fixed: its buffers that are constants.
    """

    def __init__(self, model: nn.Module, fixed: FixedBuffers) -> None:
        super().__init__()
        self._fixed = fixed
        self._twins = {id(tensor): twin for tensor, twin in fixed.of(model)}
        self._sums: dict[int, _Sum] = {}

    def __torch_function__(
        self, func: Any, _: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        arguments = (args, dict(kwargs or {}))
        if func is torch.Tensor.__getitem__:
            arguments = args, kwargs = (args[0], pytree.tree_map_only(slice, self._with_numbers, args[1])), arguments[1]
        elif getattr(func, "__name__", "") in _TAKES_SIZES:
            first, *sizes = args
            arguments = args, kwargs = (first, *map(self._with_numbers, sizes)), self._with_numbers(arguments[1])
        operands = tensors_in(arguments)
        constant = self._is_constant(func, operands, arguments)
        if (
            constant
            and operands
            and not any(map(_has_symbols, operands))
            and (func is torch.Tensor.__bool__ or func.__name__ in _READS)
        ):
            return self._read(func, arguments, operands)
        with torch._C.DisableTorchFunction():
            versions = [version_of(tensor) for tensor in operands]
        result = func(*args, **arguments[1])
        with torch._C.DisableTorchFunction():
            sets = operands[:1] if getattr(func, "__name__", "") == "__set__" else []  # as `x.data = y` does
            written = [t for t, version in zip(operands, versions, strict=True) if version_of(t) != version] + sets
            results = tensors_in(result)
            self._note_sums(func, arguments, result)
            if not (results or written) or (constant and self._made(func, arguments, results)):
                return result
            if written:
                self._forget(written)
        return result

    def _note_sums(self, func: Any, arguments: Any, result: Any) -> None:
        """Notes the sum of a tensor of which the sizes are symbols, and whether such a sum equals a number of them:
        `mask.sum() == mask.numel()`."""
        name, (args, options) = getattr(func, "__name__", "").strip("_"), arguments
        if name not in ("sum", "eq", "ne") or options or not args or not isinstance(args[0], torch.Tensor):
            return
        first, *others = args
        twin, known = self._twins.get(id(first)), self._sums.get(id(first))
        if name == "sum":
            if twin is not None and not (others or first.is_floating_point()):
                of_one = self._really(lambda tensor: int(tensor.sum()), ((first,), {}))
                total = prod((size for size in first.shape if _is_symbol(size)), start=of_one)
                self._sums[id(result)] = _Sum(result, version_of(result), total, twin.buffers)
        elif known is not None and known.version == version_of(first) and not isinstance(others[0], torch.Tensor):
            equal = statically_known_true(known.value == others[0])
            if equal or statically_known_true(known.value != others[0]):
                value = self._really(torch.tensor, ((equal == (name == "eq"),), {}))
                self._twins[id(result)] = _Twin(result, value, known.buffers)

    def has_values(self, tensor: torch.Tensor) -> bool:
        """Whether the values of a tensor are known, as in eager."""
        return id(tensor) in self._twins

    def _read(self, func: Any, arguments: Any, operands: Iterable[torch.Tensor]) -> Any:
        """What Python reads of values."""
        for name in frozenset().union(*(self._twins[id(tensor)].buffers for tensor in operands)):
            self._fixed.read.setdefault(name, here())
        return self._really(func, arguments)

    def _with_numbers(self, arguments: Any) -> Any:
        """Sizes, and the ends of slices, with numbers in the place of tensors of which the number is known."""
        if isinstance(arguments, slice):
            return slice(*map(self._with_numbers, (arguments.start, arguments.stop, arguments.step)))
        if type(arguments) in (tuple, list):
            return type(arguments)(map(self._with_numbers, arguments))
        if type(arguments) is dict:
            return {name: self._with_numbers(argument) for name, argument in arguments.items()}
        is_number = isinstance(arguments, torch.Tensor) and arguments.dim() == 0 and id(arguments) in self._twins
        if not is_number or arguments.dtype.is_floating_point or arguments.dtype == torch.bool:
            return arguments
        return self._read(torch.Tensor.item, ((arguments,), {}), [arguments])

    def _is_constant(self, func: Any, operands: list[torch.Tensor], arguments: Any) -> bool:
        """Whether a call computes with nothing but constants, as far as its arguments say."""
        if not all(id(tensor) in self._twins for tensor in operands) or torch._C._are_functorch_transforms_active():
            return False
        name = getattr(func, "__name__", "empty")
        if name in _FILLS or name in _SPREADS:
            return True
        if name.removeprefix("new_").startswith("empty") or _say_symbols(arguments):
            return False
        return (
            name in _ALIKE
            or name in _READS
            or (name in _ALONG and not _is_symbol(_size_along(_ALONG[name], arguments)))
            or not any(map(_has_symbols, operands))
        )

    def _made(self, func: Any, arguments: Any, results: list[torch.Tensor]) -> bool:
        """Whether what a call has made, and written, is a constant whose values are now known."""
        sizes = [size for tensor in results for size in tensor.shape if _is_symbol(size)]
        if sizes and getattr(func, "__name__", "") not in _FILLS | _SPREADS | _ALIKE | _ALONG.keys():
            return False
        if not all(statically_known_true(size >= 1) for size in sizes):
            return False
        shapes = [tuple(1 if _is_symbol(size) else size for size in tensor.shape) for tensor in results]
        if sum(map(prod, shapes)) > _MOST:
            return False
        try:
            made = tensors_in(self._really(func, arguments))
        except Exception:  # what torch cannot do with values in memory it does without them
            return False
        if [(t.shape, t.dtype) for t in made] != [(s, t.dtype) for s, t in zip(shapes, results, strict=True)]:
            return False
        buffers = frozenset().union(*(self._twins[id(tensor)].buffers for tensor in tensors_in(arguments)))
        self._twins.update((id(t), _Twin(t, value, buffers)) for t, value in zip(results, made, strict=True))
        return True

    def _really(self, func: Any, arguments: Any) -> Any:
        args, kwargs = pytree.tree_map(self._real, arguments)
        with torch._C.DisableTorchFunction(), _disable_current_modes(), _WithoutChance():
            return func(*args, **kwargs)

    def _real(self, argument: Any) -> Any:
        if isinstance(argument, torch.Tensor):
            return self._twins[id(argument)].value
        if _is_symbol(argument):
            return 1
        is_device = isinstance(argument, torch.device) or (isinstance(argument, str) and _is_device(argument))
        return torch.device("cpu") if is_device else argument

    def _forget(self, written: Iterable[torch.Tensor]) -> None:
        """What shares memory with tensors that were written is no constant any more."""
        storages = {storage_of(self._twins[id(tensor)].value) for tensor in written if id(tensor) in self._twins}
        shared = {storage._cdata for storage in storages if storage is not None}
        for key, twin in list(self._twins.items()):
            storage = storage_of(twin.value)
            if storage is None or storage._cdata in shared:
                del self._twins[key]


class _WithoutChance(TorchDispatchMode):
    """Refuses to draw random numbers."""

    def __torch_dispatch__(self, func: Any, _: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise ValueError
        return func(*args, **(kwargs or {}))


def _is_symbol(value: Any) -> bool:
    return isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool))


def _say_symbols(arguments: Any) -> bool:
    """Whether some argument, or the end of a slice, is a symbol."""
    leaves = pytree.tree_leaves(arguments)
    ends = [end for leaf in leaves if isinstance(leaf, slice) for end in (leaf.start, leaf.stop, leaf.step)]
    return any(map(_is_symbol, (*leaves, *ends)))


def _size_along(place: int, arguments: Any) -> Any:
    """The size of the first operand along the dimension that is the argument at a place, which numpy calls `axis`."""
    args, options = arguments
    first = args[0] if args else tensors_in(arguments)[0]
    return first.shape[args[place] if len(args) > place else options.get("dim", options.get("axis", -1))]


def _has_symbols(tensor: torch.Tensor) -> bool:
    return any(map(_is_symbol, tensor.shape))


def _is_device(text: str) -> bool:
    if not _DEVICE.fullmatch(text):
        return False
    try:
        torch.device(text)
    except RuntimeError:
        return False
    return True
