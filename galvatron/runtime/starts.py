"""A store that one start of a job has for itself.

`torchrun` starts all ranks again when one has ended, but keeps the store of those before, with what they wrote into it:
addresses at which nobody answers any more, and that a rank has failed. How often it has started them the launchers of
several machines count each for itself. So rank 0 invents a name for this start, and tells it to each rank that asks
under a name which no process before had.
"""

from __future__ import annotations

import os
import time
import uuid
from datetime import timedelta
from typing import Any

from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

_PERIOD_S = 0.02
"""Between two looks at who asks."""

_THERE = timedelta(seconds=20)
"""How long what is there may take to answer; torch tries for some 12 s more."""


def own_store(timeout: timedelta) -> Store | None:
    """That of this start; None where no launcher keeps one. Collective.

    Args:
        timeout: how long the ranks may take to come.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    kept = _of_launcher(address, port, timeout)
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    name = uuid.uuid4().hex
    if rank == 0:
        _tell(kept, name, size, timeout)
    else:
        kept.set(_asks(rank), name)
        name = kept.get(_answer(name)).decode()
        kept.set(_knows(name, rank), "")
    return PrefixStore(f"galvatron/{name}", kept)


def _of_launcher(address: str, port: int, timeout: timedelta) -> Any:
    """The store that a launcher has had before it started this process: it answers soon, or has ended."""
    try:
        kept = TCPStore(address, port, is_master=False, timeout=min(timeout, _THERE))
    except RuntimeError as error:
        raise RuntimeError(
            f"the store of its launcher, {address}:{port}, does not answer in {_THERE.total_seconds():.0f} s; the "
            "launcher has ended, or the machines cannot reach each other"
        ) from error
    kept.set_timeout(timeout)
    return kept


def _tell(kept: Any, name: str, size: int, timeout: timedelta) -> None:
    """Tell every rank of this start; one that a rank of an earlier start has left asked for is told in vain."""
    missing, latest = set(range(1, size)), time.monotonic() + timeout.total_seconds()
    answered: dict[int, str] = {}
    while missing:
        for rank in missing:
            if kept.check([_asks(rank)]) and (asked := kept.get(_asks(rank)).decode()) != answered.get(rank):
                kept.set(_answer(asked), name)
                answered[rank] = asked
        missing = {rank for rank in missing if not kept.check([_knows(name, rank)])}
        if missing and time.monotonic() > latest:
            raise RuntimeError(f"ranks {', '.join(map(str, sorted(missing)))} have not come in {timeout}")
        time.sleep(_PERIOD_S if missing else 0)


def _asks(rank: int) -> str:
    return f"galvatron/asks/{rank}"


def _answer(asked: str) -> str:
    return f"galvatron/answer/{asked}"


def _knows(name: str, rank: int) -> str:
    return f"galvatron/{name}/knows/{rank}"
