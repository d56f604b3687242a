"""Refusals: one ends a capture, unless somebody wants to see all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from galvatron.errors import CaptureError

_REPEATS = 100
"""How often the same refusal is passed over: a loop may wait for what never comes after it."""

_lists: list[Counter[str]] = []
"""The refusals seen by those who want to see all, the innermost of them last."""


@contextmanager
def listing() -> Iterator[Counter[str]]:
    """Counts all refusals inside the `with` block that can be passed over, in order.

    A forward goes on after them as torch itself would, and the first is raised when it ends: those after it may follow
    from it.
    """
    found: Counter[str] = Counter()
    _lists.append(found)
    try:
        yield found
    finally:
        _lists.pop()


def passed_over(error: CaptureError) -> int:
    """How often this has been passed over now; 0 if it is to be raised, since nobody lists refusals.

    `tracing.refusing` sees that what is passed over in a forward is raised when that ends.
    """
    if not _lists:
        return 0
    _lists[-1][str(error)] += 1
    times = _lists[-1][str(error)]
    return times if times <= _REPEATS else 0


def refuse(error: CaptureError) -> None:
    """Raises an error that the caller can pass over, unless refusals are listed."""
    if not passed_over(error):
        raise error


def refuse_first(errors: Iterable[CaptureError]) -> None:
    """Raises the first of some errors, if there is one; where refusals are listed, all are."""
    found = iter(errors)
    for first in found:
        if _lists:
            _lists[-1].update(str(error) for error in (first, *found))
        raise first
