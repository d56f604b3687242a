"""SIGINT and SIGTERM end a rank within seconds, also while its main thread waits in C++.

Python runs its handlers in the main thread, between two instructions: never, while that waits in a collective that does
not end. But it also writes the number of each signal to a file descriptor, at once. A thread reads it, and ends the
process: at once where the signal would have done so, and for a keyboard interrupt when the main thread has not come to
raise it after a short grace.

Handlers of the user are called as ever, and a signal that has one ends nothing here.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

_GRACE_S = 2.0
_NUMBERS = (signal.SIGINT, signal.SIGTERM)


class Signals:
    """The handlers of this process, from `install` to `remove`; both do nothing outside of the main thread.

    Args:
        end: called from a thread with the signal that is to end the process; it does not return.
    """

    def __init__(self, end: Callable[[signal.Signals], None]) -> None:
        self._end = end
        self._previous: dict[int, Any] = {}
        self._raised_at = 0.0
        self._pipe: tuple[int, int] | None = None
        self._forking: threading.local | None = None

    def install(self) -> None:
        """Does nothing where another library reads the file descriptor."""
        if self._pipe is not None or threading.current_thread() is not threading.main_thread():
            return
        read, write = os.pipe()
        os.set_blocking(write, False)
        other = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        if other != -1:
            signal.set_wakeup_fd(other)
            os.close(read)
            os.close(write)
            return
        self._pipe = read, write
        if self._forking is None:
            self._forking = threading.local()
            os.register_at_fork(before=self._hold, after_in_parent=self._let_go, after_in_child=self._forget)
        for number in _NUMBERS:
            previous = signal.getsignal(number)
            if previous not in (signal.SIG_IGN, None):  # ignored, as under nohup, or not set from Python
                self._previous[number] = previous
                signal.signal(number, self._handle)
        threading.Thread(target=self._read, args=(read,), name="galvatron-signals", daemon=True).start()

    def remove(self) -> None:
        """Put the handlers back."""
        if self._pipe is None or threading.current_thread() is not threading.main_thread():
            return
        write = self._pipe[1]
        other = signal.set_wakeup_fd(-1)
        if other != write:
            signal.set_wakeup_fd(other)
        for number, previous in self._previous.items():
            if signal.getsignal(number) == self._handle:
                signal.signal(number, previous)
        self._previous.clear()
        self._pipe = None
        os.close(write)  # the thread sees the end, and closes the other side

    def _hold(self) -> None:
        """Before a fork: a signal to the child waits until that has handlers of its own."""
        assert self._forking is not None
        self._forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, _NUMBERS)

    def _let_go(self) -> None:
        assert self._forking is not None
        signal.pthread_sigmask(signal.SIG_SETMASK, self._forking.mask)

    def _forget(self) -> None:
        """In a child that was forked: its signals are not the parent's."""
        if self._pipe is not None:
            read = self._pipe[0]
            self.remove()
            os.close(read)
        self._let_go()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        previous = self._previous.get(number)
        if previous is signal.default_int_handler:
            self._raised_at = time.monotonic()
        if callable(previous):
            previous(number, frame)

    def _read(self, read: int) -> None:
        while received := os.read(read, 1):
            number = received[0]
            if number not in self._previous or signal.getsignal(number) != self._handle:
                continue  # the user has taken it over
            previous = self._previous[number]
            if previous is signal.SIG_DFL or (previous is signal.default_int_handler and self._main_is_stuck()):
                self._end(signal.Signals(number))
        os.close(read)

    def _main_is_stuck(self) -> bool:
        """Whether the main thread does not come to raise a keyboard interrupt."""
        since, position = time.monotonic(), _position()
        while time.monotonic() < since + _GRACE_S:
            # It may have raised it before this thread got to run.
            if self._raised_at > since - _GRACE_S / 4 or _position() != position:
                return False
            time.sleep(0.05)
        return True


def _position() -> tuple[int, int]:
    """Where the main thread is; it stays there while it waits in C++."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    return (id(frame), frame.f_lasti) if frame is not None else (0, 0)
