"""Many values as fewer: those that are equal by the first of them, and those of one dataclass as one whose figures are
arrays, also those of dataclasses within it."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from operator import attrgetter
from typing import Any, TypeVar

import numpy as np

_Value = TypeVar("_Value")


def firsts(keys: Iterable[Hashable]) -> tuple[int, ...]:
    """For each key the position of the first that is equal."""
    found: dict[Hashable, int] = {}
    return tuple(found.setdefault(key, position) for position, key in enumerate(keys))


def stacked(values: Sequence[_Value]) -> _Value:
    """Many as one. Tuples are left out: they stay those of the first."""
    figures = attrgetter(*names(values[0]))
    columns = zip(*map(figures, values), strict=True)
    return shaped(values[0], (np.array(column, dtype=float) for column in columns))


def joined(values: Sequence[_Value]) -> _Value:
    """Many of arrays as one, in which these stand behind each other; figures that are no arrays are those of each of
    the many. Tuples are left out: they stay those of the first."""
    rows = list(map(attrgetter(*names(values[0])), values))
    counts = [max(map(np.size, row)) for row in rows]

    def behind_each_other(figures: Iterable[Any]) -> np.ndarray:
        return np.concatenate([np.broadcast_to(own, count) for own, count in zip(figures, counts, strict=True)])

    return shaped(values[0], map(behind_each_other, zip(*rows, strict=True)))


def taken(value: _Value, which: Any) -> _Value:
    """The same of some of the many, by their numbers, or of one; figures that are no arrays stay."""
    return type(value)(**{name: _taken(part, which) for name, part in _parts(value)})


def _taken(part: Any, which: Any) -> Any:
    if isinstance(part, np.ndarray):
        found = part[which]
        return found if isinstance(found, np.ndarray) else found.item()
    if isinstance(part, tuple):
        return tuple(_taken(each, which) for each in part)
    return taken(part, which) if is_dataclass(part) else part


def names(value: Any) -> list[str]:
    """The figures of a value, such as `forward_s` and `state.gradients`."""
    found: list[str] = []
    for name, part in _parts(value):
        if is_dataclass(part):
            found += (f"{name}.{inner}" for inner in names(part))
        elif not isinstance(part, tuple):
            found.append(name)
    return found


def shaped(like: _Value, figures: Iterator[Any]) -> _Value:
    """A value made as another one is, of other figures."""
    made = {
        name: shaped(part, figures) if is_dataclass(part) else part if isinstance(part, tuple) else next(figures)
        for name, part in _parts(like)
    }
    return type(like)(**made)


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    return ((field.name, getattr(value, field.name)) for field in fields(value))
