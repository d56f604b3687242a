"""Ranks go on together or not at all: an error that one of them finds is raised on all, so that none waits for one that
has left.

    with together(world, "compile"):        # every rank comes out of it, or every rank raises
        ...                                 # nothing in which ranks wait for each other
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from galvatron.errors import GalvatronError, RankError, error_of_kind
from galvatron.runtime import comm, failure
from galvatron.runtime.mesh import World
from galvatron.runtime.options import GroupOptions

T = TypeVar("T")


@dataclass(frozen=True)
class _Report:
    """What a rank tells the others: the kind and text of its error, what must be equal on all, and what on those that
    have it.
    """

    kind: str = ""
    text: str = ""
    facts: dict[str, str] = field(default_factory=dict)
    held: dict[str, str] = field(default_factory=dict)


@contextmanager
def together(world: World, what: str) -> Iterator[None]:
    """Around work that a rank does by itself: an error in it is raised on all ranks. Collective at its end.

    Raises:
        GalvatronError: this rank's own error, or that of the lowest rank that has one.
    """
    error: GalvatronError | None = None
    try:
        with failure.guarded(what):
            yield
    except RankError:
        raise
    except GalvatronError as found:
        if world.size == 1:
            raise
        error = found
    agree(world, what, error)


def on_rank_0(world: World, what: str, work: Callable[[], T]) -> T | None:
    """What rank 0 does for all, while the others wait as long as it takes; None on those. An error in it is raised on
    all ranks. Collective.

    Raises:
        GalvatronError: that of rank 0.
    """
    found, error, told = None, None, ("", "")
    with failure.guarded(what):
        if world.rank == 0:
            try:
                found = work()
            except GalvatronError as raised:
                error, told = raised, (type(raised).__name__, str(raised))
        if world.size > 1:
            told = comm.broadcast_object(told, comm.all_ranks(), 0, phase="agreement", patient=True)
    if error is not None:
        raise error
    if told[0]:
        raise error_of_kind(told[0], f"rank 0: {told[1]}")
    return found


def telling_device(world: World) -> torch.device:
    """Where numbers are that ranks tell each other: on the host where there is a backend for it."""
    cpu = torch.device("cpu")
    return cpu if world.size > 1 and cpu in comm.all_ranks()._device_types else world.device


def agree(
    world: World,
    what: str,
    error: GalvatronError | None = None,
    facts: Mapping[str, str] | None = None,
    held: Mapping[str, str] | None = None,
) -> None:
    """Returns on all ranks, if none has an error and their facts are equal. Collective.

    Args:
        held: facts that other ranks need not have.

    Raises:
        GalvatronError: this rank's own error, or that of the lowest rank that has one; or the first fact that differs.
    """
    if world.size == 1:
        if error is not None:
            raise error
        return
    if error is not None:
        own = _Report(type(error).__name__, str(error))
    else:
        own = _Report(facts=dict(facts or {}), held=dict(held or {}))
    with failure.guarded(what):
        reports = comm.gather_objects(own, comm.all_ranks(), phase="agreement")
    if error is not None:
        raise error
    for rank, report in enumerate(reports):
        if report.kind:
            raise error_of_kind(report.kind, f"rank {rank}: {report.text}")
    _compare(reports)


def _compare(reports: Sequence[_Report]) -> None:
    """Refuses facts that are not those of rank 0, or of the first that has them."""
    first = reports[0].facts
    holders: dict[str, int] = {}
    for rank, report in enumerate(reports):
        for name in sorted(first.keys() | report.facts.keys()):
            here, there = first.get(name, "nothing"), report.facts.get(name, "nothing")
            if here != there:
                raise GalvatronError(
                    f"ranks must be called alike, but {name} is {here} on rank 0 and {there} on rank {rank}"
                )
        for name, there in report.held.items():
            holder = holders.setdefault(name, rank)
            here = reports[holder].held[name]
            if here != there:
                raise GalvatronError(
                    f"optimizers must be alike on all ranks, but {name} is {here} on rank {holder} and {there} on rank "
                    f"{rank}; nothing was updated: build and change them alike, schedulers included"
                )


class Agreeing:
    """See `Calls.agreeing`."""

    def __init__(self, calls: Calls, what: str, updates: bool) -> None:
        self._calls, self._what, self._updates = calls, what, updates
        self._facts: dict[str, str] = {}

    def __enter__(self) -> dict[str, str]:
        return self._facts

    def __exit__(self, kind: object, error: BaseException | None, where: object) -> None:
        if error is None or isinstance(error, GalvatronError):
            self._calls.check(self._what, error, self._facts, updates=self._updates)
        elif isinstance(error, Exception) and not failure.lost_a_peer(error):
            # What the code of the caller raised, such as a loader: the others hear of it, and no rank is a call ahead.
            told = GalvatronError(f"{type(error).__name__}: {error}")
            try:
                self._calls.check(self._what, told, self._facts, updates=self._updates)
            except GalvatronError as raised:
                if raised is not told:
                    raise


class Calls:
    """Every rank makes the same calls: one small all-reduce before each of them, on the host where there is a backend
    for it, so that a call that a rank refuses, or that is another one, is refused by all; and an update that an
    optimizer with other options would do.

    Attributes:
        refused: what may not be called for now, and why; alike on all ranks.
    """

    def __init__(self, world: World, options: GroupOptions | None = None) -> None:
        self.refused: Mapping[str, str] = {}
        self._world = world
        self._options = options
        self._device = telling_device(world)

    def check(
        self, what: str, error: GalvatronError | None, facts: Mapping[str, str], *, updates: bool = False
    ) -> None:
        """`agree`, at the cost of a few numbers where nothing is wrong. Collective.

        Args:
            updates: the optimizer's options are to be equal too.
        """
        if error is None and what in self.refused:
            error = GalvatronError(self.refused[what])
        held: dict[str, str] = {}
        if self._world.size > 1:
            numbers: list[int | None] = [zlib.crc32(repr((what, facts)).encode())]
            if self._options is not None:  # as many in every call, since ranks that make different ones meet here
                numbers += self._options.digests() if updates else [0] * self._options.count
            pairs = [sign for n in numbers for sign in ((_ABSENT, _ABSENT) if n is None else (n, -n))]
            signs = torch.tensor([int(error is not None), *pairs], device=self._device)
            with failure.guarded(what):
                comm.all_reduce(signs, comm.all_ranks(), "max", phase="agreement").wait()
            failed, *pairs = signs.tolist()
            if pairs[::2] == [-least for least in pairs[1::2]] and not failed:
                return
            facts = {"the call": what, **facts}
            held = self._options.facts() if self._options is not None and updates else {}
        agree(self._world, what, error, facts, held)

    def agreeing(self, what: str, *, updates: bool = False) -> Agreeing:
        """Around what a rank finds out by itself before a call that all of them make: `check` at its end, with the
        error that came up in it, of whatever kind, or with the facts that were put into what it gives.

            with calls.agreeing("save") as facts:
                facts["step"] = str(whole_number(step))
        """
        return Agreeing(self, what, updates)

    def on_all(self, is_so: bool) -> bool:
        """Whether something is so on every rank. Collective."""
        if self._world.size == 1:
            return is_so
        signs = torch.tensor([int(not is_so)], device=self._device)
        with failure.guarded("agreement"):
            comm.all_reduce(signs, comm.all_ranks(), "max", phase="agreement").wait()
        return not signs.item()


_ABSENT = -(2**62)
"""Less than any digest."""
