"""What forward computes, told apart by numbers: equal ones for what is computed alike from the same tensors."""

from __future__ import annotations

import random
import sys
import types
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes

from galvatron.errors import CaptureError
from galvatron.ir.capture.evaluation import switched
from galvatron.ir.capture.refusals import refuse
from galvatron.ir.capture.running import advised, here, tensors_in
from galvatron.ir.capture.sources import is_user_file
from galvatron.ir.capture.tracing import storage_of, version_of

_MAY_CHANGE_NOTHING = frozenset(
    ("broadcast_to", "contiguous", "expand", "flatten", "repeat", "reshape", "squeeze", "view")
)
"""Functions whose result is their operand, where it has its shape and type."""


_OF_NO_VALUES = (type(None), bool, torch.dtype, torch.device)


class Numbering(TorchFunctionMode):
    """Inside the `with` block some meanings number what torch's functions give.

    Args:
        meanings: at least one; all of a first call of forward, or all of a second one.
    """

    def __init__(self, *meanings: Meaning) -> None:
        super().__init__()
        self._meanings = meanings
        self._generators = _generators()

    def __torch_function__(
        self, func: Any, _: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        options = kwargs or {}
        if _is_inside_of_tracing():
            return func(*args, **options)
        operands = tensors_in((args, options))
        with torch._C.DisableTorchFunction():
            versions = [version_of(tensor) for tensor in operands]
        result = func(*args, **options)
        results = tensors_in(result)
        with torch._C.DisableTorchFunction():
            written = [t for t, version in zip(operands, versions, strict=True) if version_of(t) != version]
            numbers = _from_values(result, results)
            if results or written or numbers:
                if not self._meanings[0].is_second:
                    self._check_generators()
                made = [t for t in results if not any(t is operand for operand in operands)]
                for meaning in self._meanings:
                    meaning.note(_Call(func, args, options, operands, made, written, numbers))
        return result

    def _check_generators(self) -> None:
        if self._generators != _generators():
            own = "draw them with torch, as in torch.rand, and choose by torch.where"
            self._generators = _generators()
            refuse(
                CaptureError(
                    f"{here()}here or shortly before, random numbers are drawn from the generator of Python or of "
                    f"numpy, which would be the same in every step: {advised(own)}"
                )
            )


@dataclass(frozen=True)
class _Call:
    """A call of a function of torch.

    Attributes:
        operands: the tensors among its arguments.
        made: the other tensors that it gave.
        written: the operands that it has written.
        numbers: what it gave to Python that follows from values.
    """

    func: Any
    args: tuple[Any, ...]
    options: Mapping[str, Any]
    operands: list[torch.Tensor]
    made: list[torch.Tensor]
    written: list[torch.Tensor]
    numbers: list[sympy.Basic]


class Meaning:
    """Numbers for what forward computes, in a first call and in a second one.

    The number of a result says which function made it, and of what. Sizes count as those of the example, or of a single
    sample.

    Args:
        leaves: parameters, buffers and inputs, which are what they are.
        counts: the symbols of the trace that are one where there is a single sample; none, for the example.
        evaluates: the first time counts as what a program does that was captured then, in a step that only evaluates.

    Attributes:
        is_second: whether it is the second call that is numbered.
        first_unlike: the head of an error message about the first call of the second time that the first did not have.
    """

    def __init__(
        self, leaves: Iterable[torch.Tensor], counts: Iterable[sympy.Basic] = (), *, evaluates: bool = False
    ) -> None:
        self._one = dict.fromkeys(counts, 1)
        self._evaluates = evaluates
        self.is_second = False
        self.first_unlike = ""
        self._known: dict[Hashable, int] = {}
        # By id; tensors and storages are held, so that no id is given twice.
        self._numbers: dict[int, tuple[torch.Tensor, int]] = {}
        self._writes: dict[int, tuple[torch.UntypedStorage, int]] = {}
        self._values: dict[sympy.Basic, sympy.Symbol] = {}  # numbers and sizes that follow from values
        self._leaves = list(leaves)
        self._number_leaves()

    def _number_leaves(self) -> None:
        for position, leaf in enumerate(self._leaves):
            self._numbers[id(leaf)] = (leaf, self._number(("leaf", position)))

    def again(self, leaves: Iterable[torch.Tensor] = ()) -> None:
        """The second time begins. What the first wrote into leaves counts as undone, and is looked at elsewhere.

        Args:
            leaves: what takes the places of the leaves, if others do.
        """
        self.is_second = True
        self._leaves = list(leaves) or self._leaves
        self._number_leaves()
        for leaf in self._leaves:
            storage = storage_of(leaf)
            if storage is not None:
                self._writes.pop(storage._cdata, None)

    def of(self, tensor: torch.Tensor) -> tuple[int, int | None]:
        """What a tensor means: how it was computed, and what was written into it."""
        own = self._own(tensor)
        storage = storage_of(tensor) if self._writes else None
        written = None if storage is None else self._writes.get(storage._cdata)
        return own, None if written is None else written[1]

    def is_written(self, tensor: torch.Tensor) -> bool:
        """Whether something was written into a tensor."""
        return self.of(tensor)[1] is not None

    def stand_for(self, tensor: torch.Tensor, meant: tuple[int, int | None]) -> None:
        """Gives a tensor the meaning of one into which nothing was written."""
        self._numbers[id(tensor)] = tensor, meant[0]

    def _own(self, tensor: torch.Tensor) -> int:
        """How a tensor was computed."""
        if id(tensor) not in self._numbers:
            self._numbers[id(tensor)] = (tensor, self._number(("other", *_content(tensor))))
        return self._numbers[id(tensor)][1]

    def note(self, call: _Call) -> None:
        """Numbers what a call has made and written."""
        args, options, made, written = call.args, call.options, call.made, call.written
        if self._evaluates and (of_switch := switched(call.func, args, options)):
            if not self.is_second and of_switch.trains:
                of_switch, written = of_switch.evaluated, []
            if of_switch.passes and not of_switch.trains:
                self._numbers.update((id(t), (t, self._own(call.operands[0]))) for t in made)
                return
            args, options = (), of_switch.arguments
        if self._is_same(call):
            self._numbers[id(made[0])] = (made[0], self._own(call.operands[0]))
            return
        number = self._number((call.func, self._described(args), self._described(options)))
        for tensor in written:
            storage = storage_of(tensor)
            if storage is not None:
                before = self._writes.get(storage._cdata, (storage, -1))[1]
                self._writes[storage._cdata] = (storage, self._number(("write", number, before)))
        for position, tensor in enumerate(made):
            self._numbers[id(tensor)] = (tensor, self._number(("result", number, position)))
        for position, symbol in enumerate(call.numbers):
            self._values.setdefault(symbol, sympy.Symbol(f"value {number} {position}"))

    def _is_same(self, call: _Call) -> bool:
        return (
            getattr(call.func, "__name__", "") in _MAY_CHANGE_NOTHING
            and len(call.operands) == len(call.made) == 1
            and call.operands[0].dtype == call.made[0].dtype
            and self._described(call.operands[0].shape) == self._described(call.made[0].shape)
        )

    def _number(self, key: Hashable) -> int:
        if self.is_second and not self.first_unlike and key not in self._known:
            self.first_unlike = here()
        return self._known.setdefault(key, len(self._known))

    def _described(self, value: Any) -> Hashable:
        """An argument of a function, as far as it decides on the result."""
        if isinstance(value, torch.Tensor):
            return self.of(value)
        if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
            return self._size(value)
        if isinstance(value, (list, tuple)):
            return tuple(map(self._described, value))
        if isinstance(value, Mapping):
            return tuple((repr(key), self._described(item)) for key, item in value.items())
        if isinstance(value, slice):
            return self._described((value.start, value.stop, value.step))
        if value is None or isinstance(value, (bool, int, float, complex, str, torch.dtype)):
            return repr(value)
        if hasattr(value, "tobytes"):  # numbers of numpy
            return str(getattr(value, "dtype", "")), getattr(value, "shape", ()), value.tobytes()
        return type(value).__name__

    def _size(self, value: torch.SymInt | torch.SymFloat | torch.SymBool) -> str:
        if not self._one:
            return repr(value.node.hint if value.node.has_hint() else value.node.expr.subs(self._values))
        try:
            size = value.node.expr.subs({**self._values, **self._one})
        except ZeroDivisionError:
            return "no size"
        return repr(int(size) if size.is_Integer else float(size)) if size.is_Rational or size.is_Float else str(size)


def _from_values(result: Any, results: list[torch.Tensor]) -> list[sympy.Basic]:
    """Numbers and sizes among results that no size says: they follow from values."""
    leaves = [] if isinstance(result, (torch.Tensor, *_OF_NO_VALUES)) else pytree.tree_leaves(result)
    sizes = [size for tensor in results for size in tensor.shape]
    symbols = [s for s in (*leaves, *sizes) if isinstance(s, (torch.SymInt, torch.SymFloat, torch.SymBool))]
    return [symbol.node.expr for symbol in symbols if not symbol.node.has_hint()]


def _is_inside_of_tracing() -> bool:
    """Whether torch calls its own function while it traces one, which is another one the second time."""
    frame: types.FrameType | None = sys._getframe(2)
    while frame is not None and not is_user_file(frame.f_code.co_filename):
        if frame.f_code.co_name == "__torch_dispatch__":
            return True
        frame = frame.f_back
    return False


def _content(tensor: torch.Tensor) -> tuple[Hashable, ...]:
    """What is known of a tensor that comes from nowhere: its values, if it has any."""
    if type(tensor) is torch.Tensor and tensor.device.type == "cpu" and storage_of(tensor) is not None:
        with _disable_current_modes():
            return tuple(tensor.shape), tensor.dtype, str(tensor.detach().flatten().tolist())
    return tensor.dim(), tensor.dtype


def _generators() -> Hashable:
    """The states of the global random generators of Python, and of numpy if it is in use."""
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return random.getstate()
    kind, key, *rest = numpy.random.get_state()
    return random.getstate(), kind, key.tobytes(), *rest
