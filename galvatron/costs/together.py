"""Calls at several batch sizes together: mostly they do the same at each, with other sizes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

from galvatron.costs.acts import Act, Backward, Form, Gave, Made
from galvatron.costs.calls import Call, Called, Setting, accumulated, added, call
from galvatron.costs.events import Event
from galvatron.costs.fitted import fitted
from galvatron.costs.watch import ObservedEvent
from galvatron.ir.layout import Axis
from galvatron.ir.ops.table import derived

Sizes = tuple[int, ...]
"""Bytes at each batch size."""

Forms = tuple[Form, ...]
"""A tensor at each batch size."""

Settings = tuple[Setting, ...]
"""Where calls run, at each batch size."""


class UnlikeError(Exception):  # it is caught by whoever then looks at one batch size after the other
    """Something happens at one batch size that does not at another."""


@dataclass(frozen=True, eq=False)
class Seen:
    """A kernel or collective at each of some batch sizes; `name`, `axis` and the storages are the same at each."""

    batches: tuple[int, ...]
    events: tuple[ObservedEvent, ...]

    @property
    def name(self) -> str:
        return self.events[0].name

    @property
    def axis(self) -> Axis | None:
        return self.events[0].axis

    @property
    def written(self) -> int:
        """The storage that it writes first."""
        return self.events[0].writes[0][0]

    @cached_property
    def event(self) -> Event:
        """The same at any batch size, of two."""
        return fitted(self.batches, self.events)

    @cached_property
    def of_weight(self) -> Seen:
        """The same where it makes the gradient of a weight."""
        return Seen(self.batches, tuple(replace(event, of_weight=True) for event in self.events))

    def on(self, axis: Axis | None, window: int | None) -> Seen:
        """The same on another axis, and under way for a while if it has a window."""
        return Seen(self.batches, tuple(replace(event, axis=axis, window=window) for event in self.events))

    def touching(self, local: Mapping[int, int]) -> Seen:
        """The same with other numbers of storages."""

        def numbered(touched: Sequence[tuple[int, float]]) -> tuple[tuple[int, float], ...]:
            return tuple((local[storage], size) for storage, size in touched)

        events = (replace(e, reads=numbered(e.reads), writes=numbered(e.writes)) for e in self.events)
        return Seen(self.batches, tuple(events))


class MadeAt(NamedTuple):
    """A storage is there, with its bytes at each batch size."""

    storage: int
    sizes: Sizes


class GaveAt(NamedTuple):
    """All is added up of an operand's gradient; see `Gave`."""

    operand: int
    storage: int
    forms: Forms
    tensor: int


ActAt = Seen | MadeAt | GaveAt | Act
"""An act at each batch size; all but kernels, storages and gradients are the same at each."""


class ResultAt(NamedTuple):
    """A result of a call; see `Result`."""

    storage: int
    forms: Forms
    operand: int | None


@dataclass(frozen=True, eq=False)
class BackwardAt:
    """The backward of a call; see `Backward`."""

    acts: tuple[ActAt, ...]
    gradients: dict[int, int]

    @cached_property
    def seen(self) -> tuple[Seen, ...]:
        """Its kernels and collectives."""
        return _seen(self.acts)

    @staticmethod
    def of(settings: Settings, each: Sequence[Backward]) -> BackwardAt:
        """
        Raises:
            UnlikeError: they do not do the same.
        """
        _same(back.gradients for back in each)
        return BackwardAt(_together(settings, [back.acts for back in each]), each[0].gradients)


class CallAt:
    """A call at each of some batch sizes.

    Raises:
        UnlikeError: it does not do the same at each, or its backward does not.
    """

    def __init__(self, settings: Settings, each: Sequence[Call]) -> None:
        self._settings, self._each = settings, each
        self._backwards: dict[tuple[Forms | None, ...], BackwardAt] = {}
        self.forward = _together(settings, [one.forward for one in each])
        self.results = tuple(_results(each))
        self.own, self.leaves, self.saved = each[0].own, each[0].leaves, each[0].saved
        _same((one.own, one.leaves) for one in each)

    @cached_property
    def seen(self) -> tuple[Seen, ...]:
        """The kernels and collectives of its forward."""
        return _seen(self.forward)

    def backward(self, gradients: tuple[Forms | None, ...]) -> BackwardAt:
        """What its backward does; see `Call.backward`."""
        if gradients not in self._backwards:
            missing: tuple[None, ...] = (None,) * len(self._each)
            forms = zip(*(gradient or missing for gradient in gradients), strict=True)
            backs = [one.backward(own) for one, own in zip(self._each, forms, strict=True)]
            self._backwards[gradients] = BackwardAt.of(self._settings, backs)
        return self._backwards[gradients]


@derived(maxsize=1 << 16)
def call_at(called: Called, settings: Settings, operands: tuple[Forms, ...]) -> CallAt:
    """The call of an op on operands of some forms."""
    sized = zip(*operands, strict=True) if operands else [()] * len(settings)
    each = [call(called, setting, own) for setting, own in zip(settings, sized, strict=True)]
    return CallAt(settings, each)


@derived(maxsize=1 << 12)
def added_at(settings: Settings, first: Forms, second: Forms) -> CallAt:
    """What autograd does with two gradients of one tensor."""
    return CallAt(settings, [added(*one) for one in zip(settings, first, second, strict=True)])


@derived(maxsize=1 << 12)
def accumulated_at(settings: Settings, leaf: Forms, gradient: Forms, *, shared: bool) -> BackwardAt:
    """What autograd does with the whole gradient of what is given to a graph; see `accumulated`."""
    each = [accumulated(*one, shared=shared) for one in zip(settings, leaf, gradient, strict=True)]
    return BackwardAt.of(settings, each)


def _seen(acts: Iterable[ActAt]) -> tuple[Seen, ...]:
    return tuple(act for act in acts if isinstance(act, Seen))


def _together(settings: Settings, each: Sequence[tuple[Act, ...]]) -> tuple[ActAt, ...]:
    batches = tuple(setting.batch for setting in settings)
    _same(map(len, each))
    return tuple(_one(batches, acts) for acts in zip(*each, strict=True))


def _one(batches: tuple[int, ...], acts: Sequence[Any]) -> ActAt:
    first = acts[0]
    _same(map(type, acts))
    if isinstance(first, ObservedEvent):
        _same((e.name, e.dtype, e.axis, e.work is None) for e in acts)
        _same([[storage for storage, _ in touched] for touched in (e.reads, e.writes)] for e in acts)
        return Seen(batches, tuple(acts))
    if isinstance(first, Made):
        _same(act.storage for act in acts)
        return MadeAt(first.storage, tuple(act.size_bytes for act in acts))
    if isinstance(first, Gave):
        _same((act.operand, act.storage, act.tensor) for act in acts)
        return GaveAt(first.operand, first.storage, _alike([act.form for act in acts]), first.tensor)
    _same(acts)
    return first


def _results(each: Sequence[Call]) -> Iterator[ResultAt | None]:
    for results in zip(*(one.results for one in each), strict=True):
        _same(result and (result.storage, result.operand) for result in results)
        first = results[0]
        yield first and ResultAt(first.storage, _alike([result.form for result in results if result]), first.operand)


def _alike(forms: Sequence[Form]) -> Forms:
    _same((form.dtype, form.differentiable) for form in forms)
    return tuple(forms)


def _same(values: Any) -> None:
    first, *others = values
    if any(other != first for other in others):
        raise UnlikeError
