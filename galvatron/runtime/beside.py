"""Work of all ranks beside their training, each on a thread of its own, that one of them ends.

The job's groups belong to the step, so ranks tell each other over connections of their own to the job's store.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

import torch.distributed as dist

from galvatron.runtime import failure
from galvatron.runtime.agreement import together
from galvatron.runtime.mesh import World
from galvatron.runtime.talking import talking

Work = Callable[[], None]

_PERIOD_S = 0.05
"""Between two questions whether the other ranks are done."""

_numbers = itertools.count()


class Beside:
    """Runs `own` on every rank, and on rank 0 `last` when all are done, or `undo` if it was in vain. Collective.

    A job whose processes end waits for it, unless a rank has failed.

    Args:
        what: names it in errors.
        last, undo: run on rank 0 alone.
    """

    def __init__(self, world: World, what: str, own: Work, last: Work, undo: Work) -> None:
        self._world, self._what = world, what
        self._own, self._last, self._undo = own, last, undo
        self._error: Exception | None = None
        self._done, self._failed = (f"galvatron/beside/{next(_numbers)}/{end}" for end in ("done", "failed"))
        # `clone` is missing from torch's type stubs
        self._store: Any = dist.distributed_c10d._get_default_store() if world.size > 1 else None
        self._thread = talking(self._run, what, daemon=False)

    def finish(self) -> None:
        """Until all of it is done. Collective.

        Raises:
            GalvatronError: what `own` or `last` raised, on the lowest rank where it did.
        """
        with together(self._world, self._what):
            self._thread.join()
            if self._error is not None:
                raise self._error

    def _run(self) -> None:
        try:
            self._own()
        except Exception as error:
            self._error = error
        is_first = self._world.rank == 0
        try:
            if self._all_well():
                if is_first:
                    self._last()
                return
        except Exception as error:
            self._error = self._error or error
        if is_first:
            self._undo()

    def _all_well(self) -> bool:
        """Tells the others how it went here; on rank 0, whether it went well everywhere, once all have told."""
        if self._store is None:
            return self._error is None
        store = self._store.clone()
        if self._error is not None:
            store.add(self._failed, 1)
        store.add(self._done, 1)
        if self._world.rank != 0:
            return self._error is None
        while store.add(self._done, 0) < self._world.size:
            if failure.job_failed():
                return False
            time.sleep(_PERIOD_S)
        return store.add(self._failed, 0) == 0
