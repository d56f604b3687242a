"""Which calls of modules do what an earlier call did, as far as can be shown: a model repeats its layers.

Forward is called once before it is traced, on the same symbolic tensors, and of each call of a module that has siblings
of its kind is noted what it computes: every function of torch that it calls, in order, from which line and part of the
module, and with which arguments. There a tensor is known by where the call has it from: the module's own parameter of a
name, what the call was given, what it has computed, or state from elsewhere. Two calls for which all of this is equal
do the same with other parameters and operands, and so the second need not be traced (`capture.copies`).

What cannot be told apart by that is not taken for alike: calls that write into what they are given, that read what was
computed elsewhere, whose results share memory with something or are read without being returned, that check values,
select by them or warn.
"""

from __future__ import annotations

import sys
import types
import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import fx, nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils import _pytree as pytree

from galvatron.ir.capture.checks import noted_so_far
from galvatron.ir.capture.constants import ConstantsHaveValues
from galvatron.ir.capture.meaning import Meaning
from galvatron.ir.capture.precision import ComputeType
from galvatron.ir.capture.running import tensors_in, turns_running
from galvatron.ir.capture.siblings import buffers_of, form_of, parameters_of
from galvatron.ir.capture.sources import is_user_file
from galvatron.ir.capture.tracing import storage_of, version_of

_PLAIN = (type(None), bool, int, float, complex, str)
_SYMBOLS = (torch.SymInt, torch.SymFloat, torch.SymBool)
_TYPES = (torch.dtype, torch.device, torch.layout, torch.memory_format)


@dataclass
class Called:
    """A call of a module.

    Attributes:
        operands: the tensors that it is given, each once.
        meant: what they mean.
        output: what it returns, flat, tensors by their places.
        results: the other tensors that it returns, with what they mean.
        is_known: whether what it does is all said by its `signature`.
        of: the earlier call that does the same, if there is one.
    """

    path: str
    module: nn.Module
    operands: list[torch.Tensor]
    meant: list[Hashable]
    known: dict[int, Hashable]
    parts: dict[int, str]
    versions: list[int]
    entered: Hashable
    done: list[Hashable] = field(default_factory=list)
    within: list[str] = field(default_factory=list)
    is_known: bool = True
    spec: pytree.TreeSpec | None = None
    output: list[Any] = field(default_factory=list)
    results: list[torch.Tensor] = field(default_factory=list)
    means: list[tuple[int, int | None]] = field(default_factory=list)
    given: Hashable = None
    of: Called | None = None

    @property
    def signature(self) -> Hashable:
        """All that it does."""
        return self.entered, tuple(self.done), self.given


class Survey(TorchFunctionMode):
    """Inside the `with` block, in which forward is called once, notes which calls of some modules are alike.

    Args:
        modules: see `siblings.repeated_modules`.
        leaves: parameters, buffers and inputs of the model.
        meaning: that of the forward, which is entered before.
    """

    def __init__(self, modules: Mapping[int, str], leaves: list[torch.Tensor], meaning: Meaning) -> None:
        super().__init__()
        self.calls: list[Called] = []
        self._modules, self._meaning = modules, meaning
        self._leaves = {id(leaf): ("leaf", place) for place, leaf in enumerate(leaves)}
        self._open: Called | None = None
        self._made: dict[int, tuple[torch.Tensor, Called]] = {}  # within calls, and not returned
        self._held: list[Any] = []  # so that no id is given twice
        self._warned: list[Any] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Forward is called inside the `with` block."""
        with (
            warnings.catch_warnings(record=True) as self._warned,
            each_call(self._modules, self._called),
            self,
        ):
            warnings.simplefilter("always")
            yield

    def settle(self, results: tuple[torch.Tensor, ...]) -> bool:
        """Finds out which calls are alike, forward having given some results; whether there are any."""
        self._note_reads(list(results))
        first: dict[Hashable, Called] = {}
        for call in self.calls:
            if call.is_known and (earlier := first.setdefault(call.signature, call)) is not call:
                call.of = earlier
        return any(call.of is not None for call in self.calls)

    def __torch_function__(
        self, func: Any, _: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = dict(kwargs or {})
        line = user_line()
        if line is None:
            return func(*args, **options)
        call = self._open
        if call is None:
            self._note_reads(tensors_in((args, options)))
            return func(*args, **options)
        mode = torch.is_grad_enabled(), torch._C._is_any_autocast_enabled()
        arguments = self._described(args, call), self._described(options, call)
        call.done.append((func, *arguments, line, call.within[-1] if call.within else "", mode))
        call.is_known &= not torch._C._are_functorch_transforms_active()
        try:
            result = func(*args, **options)
        except Exception:  # the value of a condition, or what the model catches
            call.is_known = False
            raise
        for place, made in enumerate(pytree.tree_leaves(result)):
            if isinstance(made, torch.Tensor):
                with torch._C.DisableTorchFunction():
                    call.is_known &= not any(map(is_unknown, made.shape))
                if id(made) not in call.known and id(made) not in self._leaves:
                    call.known[id(made)] = ("local", len(call.done), place)
                    self._made[id(made)] = made, call
            elif is_unknown(made):
                call.is_known = False
        return result

    def _called(self, path: str, module: nn.Module, forward: Callable[[], Any], args: Any, kwargs: Any) -> Any:
        if self._open is not None:
            return self._called_within(self._open, module, forward)
        before = len(self._warned), noted_so_far()
        self._open = call = self._entered(path, module, args, kwargs)
        try:
            output = forward()
        finally:
            self._open = None
        self.calls.append(call)
        self._leave(call, output)
        call.is_known &= before == (len(self._warned), noted_so_far())
        return output

    def _called_within(self, call: Called, module: nn.Module, forward: Callable[[], Any]) -> Any:
        part = call.parts.get(id(vars(module)))
        call.is_known &= part is not None
        call.within.append(part or "")
        try:
            return forward()
        finally:
            call.within.pop()

    def _entered(self, path: str, module: nn.Module, args: Any, kwargs: Any) -> Called:
        operands = operands_of(args, kwargs)
        self._note_reads(operands)
        own = {**parameters_of(module), **buffers_of(module)}
        known: dict[int, Hashable] = {id(tensor): ("own", name) for name, tensor in own.items()}
        call = Called(
            path=path,
            module=module,
            operands=operands,
            meant=[self._meaning.of(tensor) for tensor in operands],
            known=known,
            parts={id(vars(part)): name for name, part in module.named_modules()},
            versions=[version_of(tensor) for tensor in operands],
            entered=None,
            is_known=not torch._C._is_any_autocast_enabled()
            and not turns_running
            and not any(id(tensor) in known or any(map(is_unknown, tensor.shape)) for tensor in operands),
        )
        call.known.update((id(tensor), ("operand", place)) for place, tensor in enumerate(operands))
        types_of = tuple(map(type_of, operands))
        given = self._described((args, kwargs), call)
        call.entered = form_of(module), types_of, given, torch.is_grad_enabled()
        return call

    def _leave(self, call: Called, output: Any) -> None:
        leaves, call.spec = pytree.tree_flatten(output)
        operands = {id(tensor) for tensor in call.operands}
        for leaf in leaves:
            if not isinstance(leaf, torch.Tensor):
                call.is_known &= isinstance(leaf, _PLAIN)
            elif id(leaf) not in operands and all(leaf is not result for result in call.results):
                call.results.append(leaf)
        numbers = {id(tensor): place for place, tensor in enumerate((*call.operands, *call.results))}
        call.output = [_Place(numbers[id(leaf)]) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
        for result in call.results:
            self._made.pop(id(result), None)
        call.means = [self._meaning.of(result) for result in call.results]
        call.given = self._described([call.spec and str(call.spec), leaves], call)
        with torch._C.DisableTorchFunction():
            call.is_known &= bool(call.results)
            call.is_known &= torch.is_grad_enabled() == call.entered[3]  # type: ignore[index]
            call.is_known &= [version_of(tensor) for tensor in call.operands] == call.versions
            call.is_known &= not any(map(self._meaning.is_written, call.results))
            call.is_known = call.is_known and self._makes_fresh_results(call)

    def _makes_fresh_results(self, call: Called) -> bool:
        """Whether the results of a call are what one operation could make of its operands."""
        others = [tensor for tensor in (*call.operands, *parameters_of(call.module).values()) if tensor is not None]
        others += buffers_of(call.module).values()
        storages = [storage_of(tensor) for tensor in (*call.results, *others)]
        if any(storage is None for storage in storages):
            return False
        of_results = [storage._cdata for storage in storages[: len(call.results)] if storage is not None]
        of_others = {storage._cdata for storage in storages[len(call.results) :] if storage is not None}
        differentiates = torch.is_grad_enabled() and any(t.requires_grad for t in (*call.operands, *call.results))
        return (
            len({*of_results}) == len(of_results)
            and not of_others.intersection(of_results)
            and all(result.is_floating_point() and result.requires_grad == differentiates for result in call.results)
            and all(call.known.get(id(result), ("",))[0] == "local" for result in call.results)  # type: ignore[index]
            and all(_strides(result) == _strides(torch.empty_like(result)) for result in call.results)
            and not any(map(told_apart, call.results))
        )

    def _note_reads(self, tensors: list[torch.Tensor]) -> None:
        """Of tensors that are read outside of the call that made them, it must have returned them."""
        for tensor in tensors:
            if id(tensor) in self._made:
                self._made[id(tensor)][1].is_known = False

    def _described(self, value: Any, call: Called) -> Hashable:
        """An argument of a function, or what a call is given or gives, as the call knows it."""
        if isinstance(value, torch.Tensor):
            found = call.known.get(id(value)) or self._leaves.get(id(value))
            if found is None:
                call.is_known = False
                self._note_reads([value])
            return found
        if isinstance(value, _SYMBOLS):
            call.is_known &= not is_unknown(value)
            return type(value), value.node.expr
        if isinstance(value, (list, tuple)):
            return type(value), tuple(self._described(item, call) for item in value)
        if isinstance(value, dict):
            return tuple((self._described(key, call), self._described(item, call)) for key, item in value.items())
        if isinstance(value, slice):
            return "slice", self._described((value.start, value.stop, value.step), call)
        if isinstance(value, (*_PLAIN, *_TYPES)):
            return type(value), repr(value)
        self._held.append(value)
        return "object", id(value)


@dataclass(frozen=True)
class _Place:
    """Where a tensor that a call returns is, among its operands and then its results."""

    number: int


def returned(call: Called, operands: list[torch.Tensor], results: list[torch.Tensor]) -> Any:
    """What a call returns that has other operands and results."""
    tensors = [*operands, *results]
    leaves = [tensors[leaf.number] if isinstance(leaf, _Place) else leaf for leaf in call.output]
    assert call.spec is not None
    return pytree.tree_unflatten(leaves, call.spec)


def operands_of(args: Any, kwargs: Any) -> list[torch.Tensor]:
    """The tensors that a call is given, each once."""
    return list({id(tensor): tensor for tensor in tensors_in((args, kwargs))}.values())


@contextmanager
def each_call(modules: Mapping[int, str], called: Callable[..., Any]) -> Iterator[None]:
    """Inside the `with` block, in a trace, `called(path, module, forward, args, kwargs)` gives what a call of one of
    some modules gives, and of any module within it."""
    plain = fx.Tracer.call_module
    inside = 0

    def call(tracer: fx.Tracer, module: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        nonlocal inside
        path = modules.get(id(vars(module)))
        if path is None and not inside:
            return plain(tracer, module, forward, args, kwargs)
        inside += 1
        try:
            run = lambda: plain(tracer, module, forward, args, kwargs)  # noqa: E731
            return called(path or "", module, run, args, kwargs)
        finally:
            inside -= 1

    with mock.patch.object(fx.Tracer, "call_module", call):
        yield


def type_of(tensor: torch.Tensor) -> Hashable:
    """What is known of a tensor, but for values."""
    kind = type(tensor), told_apart(tensor)
    with torch._C.DisableTorchFunction():
        sizes = tuple(map(_size, (*tensor.shape, *tensor.stride())))
        return sizes, tensor.dtype, tensor.device, tensor.requires_grad, kind


def told_apart(tensor: torch.Tensor) -> frozenset[str]:
    """What capture knows of a tensor that decides on what becomes of it: that it has values, that it is of inputs."""
    found: set[str] = set()
    for mode in _get_current_function_mode_stack():
        if isinstance(mode, ConstantsHaveValues) and mode.has_values(tensor):
            found.add("values")
        if isinstance(mode, ComputeType) and mode.is_of_inputs(tensor):
            found.add("inputs")
    return frozenset(found)


def _strides(tensor: torch.Tensor) -> tuple[Hashable, ...]:
    with torch._C.DisableTorchFunction():
        return tuple(map(_size, tensor.stride()))


def _size(size: int | torch.SymInt) -> Hashable:
    return size.node.expr if isinstance(size, torch.SymInt) else size


def is_unknown(value: Any) -> bool:
    """Whether a number or size follows from values."""
    return isinstance(value, _SYMBOLS) and not value.node.has_hint()


def user_line() -> tuple[str, int] | None:
    """The user's line that is running; None where torch calls its own function inside of one."""
    frame: types.FrameType | None = sys._getframe(2)
    while frame is not None and not is_user_file(frame.f_code.co_filename):
        if frame.f_code.co_name == "__torch_dispatch__":
            return None
        frame = frame.f_back
    return ("", 0) if frame is None else (frame.f_code.co_filename, frame.f_lineno)
