"""Threads that talk to the job's store, all of which end before the interpreter does.

A call of the store waits in C++. A thread that comes back from there into an interpreter that is ending takes the whole
process down ("terminate called without an active exception"), whatever the script has come to.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from weakref import WeakSet

_threads: WeakSet[threading.Thread] = WeakSet()


def talking(target: Callable[..., None], name: str, *arguments: object, daemon: bool = True) -> threading.Thread:
    """Starts a thread that talks to the store.

    Args:
        daemon: whether the script may end while it runs; what has come to its end waits for it in any case.
    """
    thread = threading.Thread(target=target, args=arguments, name=f"galvatron-{name}", daemon=daemon)
    _threads.add(thread)
    thread.start()
    return thread


def wait_for_work() -> None:
    """Until the threads that are no daemons have ended: the store and its groups are theirs as well."""
    for thread in list(_threads):
        if not thread.daemon:
            thread.join()


def all_silent(limit_s: float) -> bool:
    """Whether all have ended, for which they get so long."""
    deadline = time.monotonic() + limit_s
    for thread in list(_threads):
        thread.join(max(0.0, deadline - time.monotonic()))
    return not any(thread.is_alive() for thread in list(_threads))
