"""Layers that repeat another compute tensors of the same types, which need not be made anew.

Forward is called several times beside the trace (`capture.repeat`). No tensor has values there: what a function gives
is a type, with symbols for sizes, and to find it takes most of the time of a call. A module that has siblings of its
kind nearly always calls the functions of torch that a sibling has called before, with arguments that are to it what
they were to the sibling: its own parameters of a name, what it was given, what it has computed. Then it
is given a tensor of the type that the sibling was given. All code of the model runs, and so does whatever looks at the
functions it calls (`capture.meaning`, `capture.alike`); only the function does not.

Such a tensor is of the same memory as that of the sibling. So it stands in only for what nothing can tell from it: new
memory that its call has made, that shares none with what the call was given or gives back, that is never written, and
that has no values. A call that then does something else goes on with functions that run. What is read outside of its
call, or by a gradient that forward takes itself, is not what it would be, and the call of forward is of no use.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode

from galvatron.ir.capture.alike import each_call, is_unknown, operands_of, told_apart, type_of, user_line
from galvatron.ir.capture.checks import noted_so_far
from galvatron.ir.capture.running import tensors_in, turns_running
from galvatron.ir.capture.siblings import buffers_of, form_of, parameters_of
from galvatron.ir.capture.tracing import storage_of, version_of

_Results = TypeVar("_Results", bound=tuple[torch.Tensor, ...])
_SYMBOLS = (torch.SymInt, torch.SymFloat, torch.SymBool)


class ReadElsewhereError(Exception):
    """Forward reads a tensor that stands in for another where it is not what that would be."""


@dataclass(frozen=True)
class _Type:
    """The type of a tensor, of which others are made: in the same memory, and not by a function."""

    mode: FakeTensorMode
    plain: torch.Tensor
    device: torch.device
    requires_grad: bool

    @staticmethod
    def of(tensor: FakeTensor) -> _Type:
        with torch._C._DisableTorchDispatch():
            plain = tensor.detach()
        return _Type(tensor.fake_mode, plain, tensor.device, tensor.requires_grad)

    def made(self) -> FakeTensor:
        return FakeTensor(self.mode, self.plain, self.device, requires_grad=self.requires_grad)


@dataclass
class _Step:
    """A function that calls of modules have called after the same functions.

    Attributes:
        result: what it gave the first.
        following: the steps that calls have taken next, by function and arguments.
        types: of its results, where others are given such; None, where it runs each time.
    """

    result: Any = None
    following: dict[Hashable, _Step] = field(default_factory=dict)
    types: list[_Type] | None = None

    def again(self) -> Any:
        """What others are given, where they are."""
        assert self.types is not None
        made = [kind.made() for kind in self.types]
        return made[0] if isinstance(self.result, torch.Tensor) else type(self.result)(made)


@dataclass
class _Call:
    """A call of a module that is running.

    Attributes:
        at: the step that it has taken last.
        known: by the ids of tensors, what they are to the call.
        given: the storages of those that it has not made.
        noted: how many checks of values forward has made before.
        made: the steps that no call has taken before; they hang on an earlier one only once the call is over.
        joint: that one, with what leads from there.
        is_fit: whether others may be handed out what it makes.
    """

    at: _Step
    known: dict[int, Hashable]
    given: set[int]
    noted: int
    depth: int = 0
    made: list[_Step] = field(default_factory=list)
    joint: tuple[_Step, Hashable] | None = None
    is_fit: bool = True

    def add(self, key: Hashable, step: _Step) -> None:
        if self.joint is None:
            self.joint = self.at, key
        else:
            self.at.following[key] = step
        self.made.append(step)


@contextmanager
def reusing(modules: Mapping[int, str]) -> Iterator[Callable[[Callable[[], _Results]], _Results]]:
    """Gives what calls a forward, once, in which siblings are given tensors of the types that others were given.

    What looks at what forward computes is to be entered inside the `with` block, so that it is called first.

    Args:
        modules: see `siblings.repeated_modules`; none, for a forward that is just called.
    """
    if not modules:
        yield lambda forward: forward()
        return
    reuse = _Reuse()
    with each_call(modules, reuse.called), reuse:
        yield reuse.results


class _Reuse(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self._first: dict[Hashable, _Step] = {}
        self._call: _Call | None = None
        self._shared: dict[int, torch.UntypedStorage] = {}  # by address; they are held, so that none is given twice
        self._held: list[Any] = []  # so that no id is given twice
        self._is_read_elsewhere = False

    def results(self, forward: Callable[[], _Results]) -> _Results:
        """What forward gives.

        Raises:
            ReadElsewhereError: it is to be called without this.
        """
        try:
            results = forward()
        except Exception:
            self._check()
            raise
        self._is_read_elsewhere |= any(map(self._is_shared, results))
        self._check()
        return results

    def _check(self) -> None:
        if self._is_read_elsewhere:  # forward may have caught it
            raise ReadElsewhereError

    def _is_shared(self, tensor: torch.Tensor) -> bool:
        storage = storage_of(tensor) if self._shared else None
        return storage is not None and storage._cdata in self._shared

    def __torch_function__(
        self, func: Any, _: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options, call = dict(kwargs or {}), self._call
        with torch._C.DisableTorchFunction():
            operands = tensors_in((args, options))
            if getattr(func, "__name__", "") in _FOLLOW_AUTOGRAD or func == _IS_LEAF:
                self._is_read_elsewhere |= bool(self._shared)
            strange = [t for t in operands if call is None or id(t) not in call.known]
            self._is_read_elsewhere |= any(map(self._is_shared, strange))
        self._check()
        if call is None or user_line() is None:
            return func(*args, **options)
        key = None if _is_special() else self._key(call, func, args, options)
        step = None if key is None else call.at.following.get(key)
        if step is not None and step.types is not None:
            with torch._C.DisableTorchFunction():
                result = step.again()
        else:
            result = self._run(call, func, args, options, operands)
            given = {id(tensor) for tensor in operands}
            if all(id(tensor) in given for tensor in tensors_in(result)):
                return result
            if step is None:
                step = _Step(result)
                call.is_fit &= key is not None
                call.add(key, step)
        call.at = step
        call.depth += 1
        for place, tensor in enumerate(tensors_in(result)):
            call.known.setdefault(id(tensor), ("made", call.depth, place))
            self._held.append(tensor)
        return result

    def _key(self, call: _Call, func: Any, args: Any, options: Any) -> Hashable:
        with torch._C.DisableTorchFunction():
            return func, torch.is_grad_enabled(), torch.get_default_dtype(), self._described((args, options), call)

    def _run(self, call: _Call, func: Any, args: Any, options: Any, operands: list[torch.Tensor]) -> Any:
        """What a function gives that runs; notes what that says of the call."""
        with torch._C.DisableTorchFunction():
            before = [*map(_state, operands)]
        try:
            result = func(*args, **options)
        except Exception:  # the value of a condition, or what the model catches
            call.is_fit = False
            raise
        with torch._C.DisableTorchFunction():
            if before != [*map(_state, operands)] or _changes_operands(func):
                call.is_fit, call.at = False, _Step()
                if any(map(self._is_shared, operands)):
                    self._first.clear()
        return result

    def called(self, _path: str, module: nn.Module, forward: Callable[[], Any], args: Any, kwargs: Any) -> Any:
        """What a call of a module gives."""
        if self._call is not None or turns_running or _is_special():
            return forward()
        with torch._C.DisableTorchFunction():
            self._call = call = self._entered(module, args, kwargs)
        try:
            output = forward()
        finally:
            self._call = None
        with torch._C.DisableTorchFunction():
            returned = tensors_in(output)
            self._is_read_elsewhere |= any(map(self._is_shared, returned))
            self._check()
            if call.is_fit and call.joint and call.noted == noted_so_far() and not turns_running:
                self._share(call, returned)
        return output

    def _entered(self, module: nn.Module, args: Any, kwargs: Any) -> _Call:
        operands, own = operands_of(args, kwargs), {**parameters_of(module), **buffers_of(module)}
        known: dict[int, Hashable] = {id(tensor): ("own", name) for name, tensor in own.items()}
        known.update((id(tensor), ("operand", place)) for place, tensor in enumerate(operands))
        given = {storage._cdata for t in (*operands, *own.values()) if (storage := storage_of(t)) is not None}
        call = _Call(_Step(), known, given, noted_so_far())
        self._is_read_elsewhere |= any(map(self._is_shared, operands))
        # Python may read values, and goes on with them.
        of_values = tuple((self._itself(t), version_of(t)) for t in operands if "values" in told_apart(t))
        form = form_of(module), tuple(map(type_of, operands)), of_values, self._described((args, kwargs), call)
        call.is_fit &= not any(map(told_apart, own.values()))
        call.at = self._first.setdefault(form, call.at) if call.is_fit else call.at
        return call

    def _share(self, call: _Call, returned: list[torch.Tensor]) -> None:
        """What a call has made, and taken no earlier call's place for, is there for others."""
        assert call.joint is not None
        apart = set(call.given)
        for tensor in (*returned, *(t for step in call.made for t in tensors_in(step.result) if told_apart(t))):
            if (storage := storage_of(tensor)) is not None:
                apart.add(storage._cdata)
        for step in call.made:
            storages = [*map(storage_of, tensors_in(step.result))]
            is_new = all(storage is not None and storage._cdata not in apart for storage in storages)
            if is_new and (plain := _plain(step.result)):
                step.types = [*map(_Type.of, plain)]
                self._shared.update((s._cdata, s) for s in storages if s is not None)
        at, key = call.joint
        at.following[key] = call.made[0]

    def _described(self, value: Any, call: _Call) -> Hashable:
        """An argument of a function, or of a call, as far as it decides on the types of what is computed."""
        if isinstance(value, torch.Tensor):
            if id(value) not in call.known and (storage := storage_of(value)) is not None:
                call.given.add(storage._cdata)
            return call.known.get(id(value)) or self._itself(value)
        if isinstance(value, _SYMBOLS):
            call.is_fit &= not is_unknown(value)
            return type(value), value.node.expr
        if isinstance(value, (list, tuple)):
            return type(value), tuple(self._described(item, call) for item in value)
        if isinstance(value, dict):
            return tuple((self._described(key, call), self._described(item, call)) for key, item in value.items())
        if isinstance(value, slice):
            return "slice", self._described((value.start, value.stop, value.step), call)
        if isinstance(value, _PLAIN):
            return type(value), value
        return self._itself(value)

    def _itself(self, value: Any) -> Hashable:
        self._held.append(value)
        return "object", id(value)


def _plain(result: Any) -> list[FakeTensor]:
    """What a function gives, if that is but tensors without values, of sizes that do not follow from values."""
    results = result if type(result) in (tuple, list) else [result]
    plain = [made for made in results if type(made) is FakeTensor and made.constant is None]
    return plain if len(plain) == len(results) and not any(is_unknown(n) for made in plain for n in made.shape) else []


_PLAIN = (type(None), bool, int, float, complex, str, torch.dtype, torch.device, torch.layout, torch.memory_format)

_FOLLOW_AUTOGRAD = frozenset(("backward", "grad"))
"""Functions that go back the way by which a tensor was made."""

_IS_LEAF = torch.Tensor.is_leaf.__get__  # pyright: ignore[reportAttributeAccessIssue] (a property, to Python)


def _state(tensor: torch.Tensor) -> Hashable:
    """What a function may change of its operand."""
    return version_of(tensor), tensor.requires_grad


def _changes_operands(func: Any) -> bool:
    """Whether a function may change more of its operands than their version says: `x.data = y`, `x.t_()`, or what
    autograd knows of them."""
    name = getattr(func, "__name__", "")
    is_in_place = name.endswith("_") and not name.endswith("__")
    return is_in_place or name in ("__set__", "retain_grad") or name in _FOLLOW_AUTOGRAD


def _is_special() -> bool:
    """Whether torch makes of functions something else than they are: in autocast, or for `torch.vmap` and the like."""
    return torch._C._is_any_autocast_enabled() or torch._C._are_functorch_transforms_active()
