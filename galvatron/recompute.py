"""Recomputation: calls that keep little of what autograd would save, and compute it again when the backward asks.

    loss = recomputed(function)(x, weight)      # keeps x and weight, and nothing that the function computes

The forward is recorded: whatever autograd saves is replaced by a placeholder. The first placeholder that the backward
opens replays the function on the same arguments, up to the last tensor that is missing, and fills all of them.

Inside a *selective* call, `keep(f, *operands)` calls `f` in the forward only: its result is kept, and the replay takes
that instead. The replay still provides what autograd saved of the operands; what it saved besides is kept. `once(f,
*operands)` does not keep the result either; it is for results that only later steps of `keep` and `once` read, without
saving them. Outside a selective call both just call.

`again(function, x, weight)` calls a part of a function that is recomputed by itself, while the rest is not.

This is `torch.utils.checkpoint` without re-entrance, except for what a selective call keeps: here that is the result of
any function, with the communication inside it, and watching for it costs nothing per kernel. The function must do the
same in both runs, so random draws must follow from its arguments, and results of `keep` must not be changed in place.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, Protocol
from weakref import ref

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from galvatron.errors import GalvatronError


def recomputed(function: Callable[..., Any], *, selective: bool = False) -> Callable[..., Any]:
    """The same function, with its activations computed again in the backward.

    Args:
        function: takes tensors as positional arguments, not in lists or by keyword.
        selective: whether `keep` and `once` inside it run in the forward only.
    """

    def call(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return function(*args, **kwargs)
        return _Recording(function, args, kwargs, selective).run(args)

    return call


def keep(function: Callable[..., Any], *operands: Any, **options: Any) -> Any:
    """`function(*operands, **options)`; in a selective call its result is kept and not computed again."""
    run = _thread.run
    return function(*operands, **options) if run is None else run.step(function, operands, options, kept=True)


def once(function: Callable[..., Any], *operands: Any, **options: Any) -> Any:
    """As `keep`, but the result is not kept: None stands for it in the replay."""
    run = _thread.run
    return function(*operands, **options) if run is None else run.step(function, operands, options, kept=False)


def again(function: Callable[..., Any], *operands: Any) -> Any:
    """`function(*operands)`, with its activations computed again in the backward."""
    return recomputed(function)(*operands)


class _Run(Protocol):
    """The forward of a selective call, or its replay."""

    def step(
        self, function: Callable[..., Any], operands: Sequence[Any], options: dict[str, Any], *, kept: bool
    ) -> Any:
        """What `keep` and `once` do."""
        ...


class _Thread(threading.local):
    run: _Run | None = None
    """The selective call that runs now; none inside one of its steps."""


_thread = _Thread()


@contextmanager
def running(run: _Run) -> Iterator[None]:
    """Inside the `with` block steps are given to `run`, as in a selective call."""
    before, _thread.run = _thread.run, run
    try:
        yield
    finally:
        _thread.run = before


class _Placeholder:
    """What autograd holds instead of a tensor; the tensor is there once the call has been replayed."""

    __slots__ = ("__weakref__", "recording", "shape", "tensor")

    def __init__(self, recording: _Recording, shape: torch.Size) -> None:
        self.recording, self.shape = recording, shape
        self.tensor: Tensor | None = None


class _Step:
    """A step that runs in the forward only: its result if that is kept, and what it saved of its operands.

    `views` are (placeholder, position or keyword of the operand, size, stride, offset from that of the operand).
    """

    __slots__ = ("result", "views")

    def __init__(self) -> None:
        self.result: Any = None
        self.views: list[tuple[ref[_Placeholder], int | str, torch.Size, tuple[int, ...], int | torch.SymInt]] = []


class _Recording:
    """One call of a function; placeholders keep it alive until they are filled."""

    def __init__(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], selective: bool
    ) -> None:
        self.function, self.kwargs, self.selective = function, kwargs, selective
        self.args = tuple(_without_graph(a) for a in args)
        self.placeholders: list[ref[_Placeholder]] = []
        self.steps: list[_Step] = []
        self.missing = 0
        """Placeholders, those of steps included."""
        self._read = 0
        """Steps before the last missing tensor: only their results are read by the replay."""
        self._step: _Step | None = None
        self._operands: dict[int, tuple[int | str, Tensor]] = {}

    def run(self, args: tuple[Any, ...]) -> Any:
        """The function's result."""
        before, _thread.run = _thread.run, self if self.selective else None
        try:
            with saved_tensors_hooks(self._pack, _unpack):
                result = self.function(*args, **self.kwargs)
        finally:
            _thread.run = before
        for step in self.steps[self._read :]:
            step.result = None
        return result

    def step(
        self, function: Callable[..., Any], operands: Sequence[Any], options: dict[str, Any], *, kept: bool
    ) -> Any:
        step = self._step = _Step()
        given = (*enumerate(operands), *options.items())
        self._operands = {_storage(value): (place, value) for place, value in given if isinstance(value, Tensor)}
        _thread.run = None
        try:
            result = function(*operands, **options)
        finally:
            _thread.run = self
            self._step = None
            self._operands = {}
        if kept:
            step.result = _each(_without_graph, result)
        self.steps.append(step)
        return result

    def _pack(self, tensor: Tensor) -> _Placeholder | Tensor:
        """What autograd holds instead of a tensor that it saves."""
        if self._step is None:
            placeholder = _Placeholder(self, tensor.shape)
            self.placeholders.append(ref(placeholder))
        else:
            place, operand = self._operands.get(_storage(tensor), (0, None))
            if operand is None or operand.dtype != tensor.dtype:
                return tensor
            placeholder = _Placeholder(self, tensor.shape)
            offset = tensor.storage_offset() - operand.storage_offset()
            self._step.views.append((ref(placeholder), place, tensor.shape, tensor.stride(), offset))
        self.missing += 1
        self._read = len(self.steps)
        return placeholder

    def replay(self) -> None:
        """Fills every placeholder that is still alive, and forgets the rest."""
        replay = _Replay(self)
        before, _thread.run = _thread.run, replay if self.selective else None
        try:
            with torch.enable_grad(), saved_tensors_hooks(replay.pack, _never):
                self.function(*self.args, **self.kwargs)
        except Complete:
            pass
        finally:
            _thread.run = before
        if replay.filled < self.missing:
            raise _different(f"{replay.filled} tensors instead of {self.missing}")
        self.args, self.kwargs, self.placeholders, self.steps = (), {}, [], []


class _Replay:
    """A run of the recorded function that fills its placeholders, and ends with the last of them."""

    def __init__(self, recording: _Recording) -> None:
        self.recording = recording
        self.filled = 0
        self._placeholders = iter(recording.placeholders)
        self._steps = iter(recording.steps)

    def pack(self, tensor: Tensor) -> None:
        placeholder = next(self._placeholders, None)
        if placeholder is None:
            raise _different("more tensors")
        self._fill(placeholder(), tensor)
        self._count()

    def step(
        self, function: Callable[..., Any], operands: Sequence[Any], options: dict[str, Any], *, kept: bool
    ) -> Any:
        step = next(self._steps, None)
        if step is None:
            raise _different("more steps")
        for placeholder, place, size, stride, offset in step.views:
            operand = operands[place] if isinstance(place, int) else options[place]
            self._fill(placeholder(), operand.as_strided(size, stride, operand.storage_offset() + offset))
            self._count()
        return step.result

    def _fill(self, placeholder: _Placeholder | None, tensor: Tensor) -> None:
        if placeholder is not None:
            if placeholder.shape != tensor.shape:
                raise _different(f"shape {tuple(tensor.shape)} instead of {tuple(placeholder.shape)}")
            placeholder.tensor = tensor.detach()  # what computed it would hold what it read

    def _count(self) -> None:
        self.filled += 1
        if self.filled == self.recording.missing:
            raise Complete


class Complete(Exception):
    """Ends a replay in the middle of what it calls: nothing is missing any more."""


def _different(what: str) -> GalvatronError:
    return GalvatronError(f"a recomputed layer is not the same as in its forward: autograd saves {what}")


def _unpack(packed: _Placeholder | Tensor) -> Tensor:
    if isinstance(packed, Tensor):
        return packed
    if packed.tensor is None:
        packed.recording.replay()
        assert packed.tensor is not None
    return packed.tensor


def _never(packed: Any) -> NoReturn:
    raise AssertionError("nothing runs backward through a replay")


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _without_graph(value: Any) -> Any:
    """A tensor cut off from what made it, with or without a gradient as before; anything else, leaves too, as it is."""
    if isinstance(value, Tensor) and value.grad_fn is not None:
        return value.detach().requires_grad_()
    return value


def _each(function: Callable[[Any], Any], result: Any) -> Any:
    return type(result)(map(function, result)) if isinstance(result, (tuple, list)) else function(result)
