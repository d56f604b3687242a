"""The longest that a rank waits for others: who waits longer asks all ranks where they are, and ends the job.

The time is that of this rank alone, so a rank that is stopped, dead or lost in the user's code is found by those that
wait for it, whatever the communication library does about it. What is found is a communication that does not end: one
that ranks leave with wrong values, because all of them brought equally many bytes to different calls, is not seen.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from galvatron.runtime.comm import Message, now
from galvatron.runtime.diagnosis import Whereabouts, verdict, whereabouts
from galvatron.runtime.talking import talking

DEFAULT_TIMEOUT_S = 600.0

NEWS = "galvatron/news"
"""The key of the job's store that is there as soon as ranks are asked where they are, or one has failed."""

_ASKER = "galvatron/asker"
_ANSWER_S = 3.0
_SILENCE_S = 15.0


class Limit:
    """Times the waits of this rank on a thread of its own, which never waits for anybody.

    Args:
        store: of the job.
        limit_s: how long a wait may be, not counting time in which this whole process was stopped.
        end: called with the error that ends the job, if no other rank has given one.
    """

    def __init__(self, store: Any, rank: int, limit_s: float, end: Callable[[str], None]) -> None:
        self.limit_s = limit_s
        self._store = store
        self._rank = rank
        self._end = end
        self._wait: Message | None = None
        self._waited_s = 0.0
        self._verdict = ""
        self._stop = threading.Event()
        talking(self._run, "limit")

    def stop(self) -> None:
        """It times no more, once its thread has seen that."""
        self._stop.set()

    def where(self, *, busy: bool) -> Whereabouts:
        """What this rank does now."""
        wait = now.wait()
        return whereabouts(self._rank, now, wait, self._waited_s if wait is self._wait else 0.0, busy=busy)

    def answer(self, where: Whereabouts) -> None:
        """Tell whoever asks."""
        self._store.set(_key(self._rank), where.to_text())

    def ended(self, ranks: tuple[int, ...]) -> tuple[int, ...]:
        """Those of some ranks that have ended and said so."""
        told = (self._told(rank) for rank in ranks)
        return tuple(where.rank for where in told if where is not None and where.state == "ended")

    def _run(self) -> None:
        before = time.monotonic()
        while True:
            period_s = min(1.0, self.limit_s / 10)
            if self._stop.wait(period_s):
                return
            passed_s, before = time.monotonic() - before, time.monotonic()
            if self.is_over(now.wait(), min(passed_s, 2 * period_s)):
                self._give_up()
                return

    def is_over(self, wait: Message | None, passed_s: float) -> bool:
        """Whether this rank, after so much more time, still is in the same wait and has been for too long."""
        if wait is None or wait.patient or wait is not self._wait:
            self._wait, self._waited_s = wait, 0.0
            return False
        self._waited_s += passed_s
        return self._waited_s > self.limit_s

    def _give_up(self) -> None:
        """Have the verdict found, but not for ever: the host of the store may be the one that does not answer."""
        talking(self._ask, "asks").join(_SILENCE_S)
        mine = self._waiting()
        self._end(self._verdict or f"{mine} waited {mine.seconds:.0f} s in {mine.operation()}; nobody answers")

    def _ask(self) -> None:
        if self._store.add(_ASKER, 1) != 1:
            self._stop.wait(_SILENCE_S)  # for the first one to end the job; it may be unable to
            return
        answers = {self._rank: self._waiting()}
        self._store.set(NEWS, "where")
        deadline = time.monotonic() + _ANSWER_S
        while True:
            # Only ranks that somebody waits for are of interest.
            missing = {peer for answer in answers.values() for peer in answer.peers} - set(answers)
            found = {rank: told for rank in missing if (told := self._told(rank)) is not None}
            answers.update(found)
            if not missing or (not found and time.monotonic() > deadline):
                break
            if not found:
                self._stop.wait(0.1)
        self._verdict = verdict(self._rank, answers)

    def _waiting(self) -> Whereabouts:
        return whereabouts(self._rank, now, self._wait, self._waited_s, busy=True)

    def _told(self, rank: int) -> Whereabouts | None:
        if not self._store.check([_key(rank)]):
            return None
        return Whereabouts.from_text(self._store.get(_key(rank)).decode())


def _key(rank: int) -> str:
    return f"galvatron/where/{rank}"
