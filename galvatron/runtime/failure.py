"""What happens when a rank fails or hangs: every rank ends within seconds, and the first error is what is shown.

The failing rank prints one line, writes it under one key of the job's store and lets its exception travel on. That
happens at once for an error in the middle of a step, and for any other error when it ends the script. A watch thread on
every other rank sees the key. A rank that was waiting for the failed one then gets an exception from the closed
connection, which is replaced by `RankError` naming the first failure; one that stays stuck in a collective (NCCL does
not notice a lost peer) is ended after a short grace. A rank that does not come to where others wait for it is found by
them (`limit`). Signals that end a process are heeded wherever its main thread is (`signals`).
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any

import torch.distributed as dist

from galvatron.errors import GalvatronError, RankError
from galvatron.runtime.comm import now
from galvatron.runtime.diagnosis import Whereabouts
from galvatron.runtime.limit import NEWS, Limit
from galvatron.runtime.signals import Signals
from galvatron.runtime.talking import all_silent, talking

_FAILURE = "galvatron/first_failure"
_GRACE_S = 3.0
_SILENCE_S = 30.0
"""In which a call of the store comes back, if it does at all."""


class _Watch:
    """Polls the job's store over a connection of its own, so that it never waits behind a blocked collective."""

    def __init__(self, store: Any, rank: int, size: int, limit_s: float) -> None:
        self.rank = rank
        self.size = size
        self.store = store
        self.first_failure: str | None = None
        self.failed_here = self.failed_first = False
        self.busy = 0  # depth of `guarded` blocks the main thread is in
        self.limit = Limit(store, rank, limit_s, self._hung)
        self._answered = False
        self._lost_since: float | None = None
        # A few thousand requests per second is what one store serves comfortably.
        self._period_s = max(0.2, size / 4000)
        self._stop = threading.Event()
        talking(self._run, "watch")

    def stop(self) -> None:
        self._stop.set()
        self.limit.stop()
        if not self.failed_here and self._lost_since is None:
            talking(self._tell_end, "end")
        if not all_silent(_SILENCE_S):
            _print(f"rank {self.rank} ends, though the job's store does not answer: see to the launcher, or rank 0")
            _end_process(1)

    def _tell_end(self) -> None:
        with suppress(RuntimeError):
            self.limit.answer(Whereabouts(self.rank, "ended", now.stages))

    def poll(self) -> str | None:
        """The first failure of the job, or None. A lost store counts as none: the launcher or rank 0 has ended."""
        if self.first_failure is None and self._lost_since is None:
            try:
                if self.store.check([NEWS]):
                    if not self._answered:
                        self._answered = True
                        self.limit.answer(self.limit.where(busy=self.busy > 0))
                    if self.store.check([_FAILURE]):
                        self.first_failure = self.store.get(_FAILURE).decode()
            except RuntimeError:
                self._lost_since = time.monotonic()
        return self.first_failure

    def report(self, line: str) -> None:
        """Tell the others that this rank has failed, unless the host of the store does not answer."""
        self.failed_here = True
        talking(self._tell, "tells", line).join(_GRACE_S)
        self.first_failure = self.first_failure or line
        self.failed_first = self.first_failure == line

    def _tell(self, line: str) -> None:
        with suppress(RuntimeError):
            self.first_failure = self.store.compare_set(_FAILURE, "", line).decode()
            self.store.set(NEWS, "failed")

    def _run(self) -> None:
        while not self._stop.wait(self._period_s):
            failure = self.poll()
            lost = self._lost_since is not None and time.monotonic() - self._lost_since > _GRACE_S
            if failure is None and not lost:
                continue
            if not self.failed_here and not self._stop.wait(_GRACE_S) and self.busy and not self.failed_here:
                reason = failure or "the job's store is gone: the launcher or rank 0 has ended"
                _print(f"rank {self.rank} stops: {reason}")
                _end_process(1)
            if failure is not None:
                return

    def _hung(self, line: str) -> None:
        """This rank has waited too long: end the job with this error, if it has no other one."""
        if self.first_failure is None:
            with _one_at_a_time():
                _print(line)
                _write_torchrun_error_file(TimeoutError(line))
                self.report(line)
                _end_process(1)


_watch: _Watch | None = None


def _forget() -> None:
    """In a process that was forked, to load data for example: it is no rank, and the connection is its parent's, whose
    answers it would take."""
    global _watch
    _watch = None


os.register_at_fork(after_in_child=_forget)


def watch(store: Any, rank: int, size: int, limit_s: float) -> None:
    """Start watching the job. When already watching, only the limit is new.

    Args:
        store: of the job.
        limit_s: the longest a rank may wait for others in one communication.
    """
    global _watch
    if _watch is not None:
        _watch.limit.limit_s = limit_s
        return
    _watch = _Watch(store.clone(), rank, size, limit_s)
    take_uncaught_errors()
    _signals.install()


def stop() -> bool:
    """Stop watching; True when the job has failed, here or elsewhere."""
    global _watch
    if _watch is None:
        return False
    _watch.stop()
    failed = _watch.first_failure is not None
    _watch = None
    return failed


def job_failed() -> bool:
    """Whether a rank is known to have failed."""
    return _watch is not None and _watch.first_failure is not None


@contextmanager
def guarded(what: str) -> Iterator[None]:
    """Around work that communicates: an error inside is reported to the other ranks, and when another rank failed
    first, that is what is raised.

    A `GalvatronError` passes as it is: it says that the input is wrong, which all ranks find alike, and the job can go
    on. After any other error it cannot, also where the script has caught it.

    Raises:
        RankError: another rank failed first, or is lost, or this one failed before now.
    """
    if _watch is None:
        yield
        return
    if _watch.first_failure is not None and not _watch.failed_here:
        raise RankError(_watch.first_failure)
    if _watch.failed_here and _watch.size > 1:
        with _one_at_a_time():  # another thread may still be telling why, as for a signal
            raise RankError(f"this job cannot go on: {_watch.first_failure}")
    if not _watch.busy:
        now.reset()
    _watch.busy += 1
    try:
        yield
    except GalvatronError:
        raise
    except BaseException as error:
        if not isinstance(error, KeyboardInterrupt):
            _raise_if_another_failed(_watch)
        _report(_watch, what, error)
        if lost_a_peer(error) and _watch.first_failure is not None:
            raise RankError(_watch.first_failure) from error
        raise
    finally:
        _watch.busy -= 1


def _raise_if_another_failed(active: _Watch) -> None:
    failure = active.first_failure if active.failed_here else active.poll()
    if failure is not None and not active.failed_here:
        raise RankError(failure) from None


_saying = threading.RLock()


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Around what says why this rank ends: a thread that is at it, as for a signal, may finish, unless it is stuck."""
    is_held = _saying.acquire(timeout=2 * _GRACE_S)
    try:
        yield
    finally:
        if is_held:
            _saying.release()


def _report(active: _Watch, what: str, error: BaseException) -> None:
    with _one_at_a_time():
        if active.failed_here:
            return
        if isinstance(error, KeyboardInterrupt):
            _report_once(active, f"rank {active.rank} was interrupted in {what}{_where(active)}")
            return
        verb = _lost(active) if lost_a_peer(error) else "failed"
        reason = traceback.format_exception_only(error)[-1].strip()
        line = f"rank {active.rank} {verb} in {what}{_where(active)}: {reason}"
        _print(line)
        _write_torchrun_error_file(error)
        active.report(line)


_LOST = ("onnection closed by peer", "onnection reset by peer")


def lost_a_peer(error: BaseException) -> bool:
    """Whether an error says that another rank is gone, or cannot be reached."""
    return isinstance(error, dist.DistError) or any(words in str(error) for words in _LOST)


def _lost(active: _Watch) -> str:
    """What happened, when a peer has closed its connection."""
    ended: tuple[int, ...] = ()
    with suppress(RuntimeError):
        ended = active.limit.ended(active.limit.where(busy=True).peers[:64])
    if ended:
        return f"lost rank {ended[0]}, which has ended,"
    return "lost another rank, which was killed or crashed,"


def _where(active: _Watch) -> str:
    """The communication or the layer that an error came from."""
    where = active.limit.where(busy=True)
    if where.state == "waiting":
        return f", in {where.operation()}"
    return f", layer {where.place[1]}, {where.phase} of micro-batch {where.place[2]}" if where.place else ""


def _report_once(active: _Watch, line: str) -> None:
    """Report what all ranks may meet at the same time: only the first one shows it."""
    with _one_at_a_time():
        active.report(line)
        if active.failed_first:
            _print(line)


def _signalled(number: signal.Signals) -> None:
    """A signal ends this process, whose main thread may be stuck."""
    active = _watch
    if active is not None and active.first_failure is None:
        _report_once(active, f"rank {active.rank} was ended by {number.name}{_where(active)}")
    _end_process(128 + number)


_signals = Signals(_signalled)


def release_signals() -> None:
    """Put the handlers of SIGINT and SIGTERM back, when nothing can get stuck any more."""
    _signals.remove()


def _end_process(status: int) -> None:
    """End this process though its main thread may be stuck, but with what it has printed."""
    flushing = threading.Thread(target=sys.stdout.flush, daemon=True)
    flushing.start()
    flushing.join(1.0)
    os._exit(status)


def _print(line: str) -> None:
    sys.stderr.write(f"galvatron: {line}\n")
    sys.stderr.flush()


def take_uncaught_errors() -> None:
    """An error that ends the script is reported; the only traceback of a failed job is that of the rank that failed.

    To be called again when others have put themselves before this, as torch does: it writes the rank before each line.
    """
    previous = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if threading.current_thread() is not threading.main_thread():  # of a library that shows what ends no script
            previous(kind, error, trace)
            return
        if isinstance(error, RankError) and _watch is not None:
            if str(error) != _watch.first_failure or not _watch.failed_first:  # which has been printed
                _print(f"rank {_watch.rank} stops: {error}")
            return
        if _watch is not None:
            _report(_watch, "the script", error)
            if isinstance(error, KeyboardInterrupt) and not _watch.failed_first:
                return
        previous(kind, error, trace)

    sys.excepthook = hook


def _write_torchrun_error_file(error: BaseException) -> None:
    """`torchrun` shows the earliest error file as the root cause of the job."""
    if "TORCHELASTIC_ERROR_FILE" in os.environ and isinstance(error, Exception):
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        get_error_handler().record_exception(error)
