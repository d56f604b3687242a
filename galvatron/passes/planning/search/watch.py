"""What a search has found so far: for those who wait for it, and for when it has to end early."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import FrameType
from typing import Any


@dataclass(frozen=True)
class Progress:
    """How far a search is.

    Attributes:
        done, of: combinations of pipeline degree, micro-batches and ways to keep ties.
        costed: whether the costs of all are known; before that nothing is found.
        best_s: seconds of the best plan so far; infinite before there is one.
        bound_s: no plan takes less.
    """

    done: int
    of: int
    costed: bool
    best_s: float
    bound_s: float


Listener = Callable[[Progress], None]

_LISTENER: ContextVar[Listener | None] = ContextVar("listener", default=None)
_DEADLINE: ContextVar[float] = ContextVar("deadline", default=math.inf)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Searches in the block tell a listener how far they are."""
    token = _LISTENER.set(listener)
    try:
        yield
    finally:
        _LISTENER.reset(token)


class Stopped(Exception):  # it is caught by whoever sets the limit
    """The time of a search is over."""


@dataclass
class Watch:
    """Follows one search. `best` is whatever the search finds, `bound_s` what is proven.

    Raises:
        Stopped: it is told something when the time of the search is over.
    """

    best: Any = None
    best_s: float = math.inf
    bound_s: float = 0.0
    listener: Listener | None = field(default_factory=_LISTENER.get)

    def costing(self, done: int, of: int) -> None:
        """So many combinations have their costs."""
        self._tell(Progress(done, of, False, self.best_s, self.bound_s))

    def solving(self, done: int, of: int, bound_s: float) -> None:
        """So many combinations are settled, and nothing in the others takes less than a bound."""
        self.bound_s = max(self.bound_s, bound_s)
        self._tell(Progress(done, of, True, self.best_s, self.bound_s))

    def found(self, seconds: float, what: Any) -> None:
        """Something faster than all before."""
        self.best_s, self.best = seconds, what

    def _tell(self, progress: Progress) -> None:
        if time.monotonic() > _DEADLINE.get():
            raise Stopped
        if self.listener is not None:
            self.listener(progress)


@contextmanager
def limited(seconds: float | None) -> Iterator[None]:
    """Raises `Stopped` in the block when its time is over: at once in the main thread, and in others, which no signal
    reaches, when the search next tells how far it is.

    Raises:
        Stopped: the time is over.
    """
    if seconds is None:
        yield
        return
    if threading.current_thread() is not threading.main_thread():
        token = _DEADLINE.set(time.monotonic() + seconds)
        try:
            yield
        finally:
            _DEADLINE.reset(token)
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped

    begin, before = time.monotonic(), signal.signal(signal.SIGALRM, stop)
    left_s, _ = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
        if left_s:  # an alarm of somebody else comes when it would have come
            signal.setitimer(signal.ITIMER_REAL, max(1e-6, left_s - (time.monotonic() - begin)))
