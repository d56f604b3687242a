"""Ranks go on together or not at all: an error that one of them finds is raised on all, so that none waits for one that
has left.

    with together(world, "compile"):        # every rank comes out of it, or every rank raises
        ...                                 # nothing in which ranks wait for each other
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from galvatron.errors import GalvatronError, RankError, error_of_kind
from galvatron.runtime import comm, failure
from galvatron.runtime.mesh import World


@dataclass(frozen=True)
class _Report:
    """What a rank tells the others: the kind and text of its error, and what must be equal on all."""

    kind: str = ""
    text: str = ""
    facts: dict[str, str] = field(default_factory=dict)


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


def agree(world: World, what: str, error: GalvatronError | None = None, facts: Mapping[str, str] | None = None) -> None:
    """Returns on all ranks, if none has an error and their facts are equal. Collective.

    Raises:
        GalvatronError: this rank's own error, or that of the lowest rank that has one; or the first fact that differs.
    """
    if world.size == 1:
        if error is not None:
            raise error
        return
    own = _Report(type(error).__name__, str(error)) if error is not None else _Report(facts=dict(facts or {}))
    with failure.guarded(what):
        reports = comm.gather_objects(own, comm.all_ranks(), phase="agreement")
    if error is not None:
        raise error
    for rank, report in enumerate(reports):
        if report.kind:
            raise error_of_kind(report.kind, f"rank {rank}: {report.text}")
    _compare(reports)


def _compare(reports: Sequence[_Report]) -> None:
    """Refuses facts that are not those of rank 0."""
    first = reports[0].facts
    for rank, report in enumerate(reports):
        for name in sorted(first.keys() | report.facts.keys()):
            here, there = first.get(name, "nothing"), report.facts.get(name, "nothing")
            if here != there:
                raise GalvatronError(
                    f"ranks must be called alike, but {name} is {here} on rank 0 and {there} on rank {rank}"
                )


class Calls:
    """Every rank makes the same calls: one small all-reduce before each of them, on the host where there is a backend
    for it, so that a call that a rank refuses, or that is another one, is refused by all.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._device = world.device
        if world.size > 1 and torch.device("cpu") in comm.all_ranks()._device_types:
            self._device = torch.device("cpu")

    def check(self, what: str, error: GalvatronError | None, facts: Mapping[str, str]) -> None:
        """`agree`, at the cost of one number where nothing is wrong. Collective."""
        if self._world.size > 1:
            digest = zlib.crc32(repr((what, facts)).encode())
            signs = torch.tensor([digest, -digest, int(error is not None)], device=self._device)
            with failure.guarded(what):
                comm.all_reduce(signs, comm.all_ranks(), "max", phase="agreement").wait()
            most, least, failed = signs.tolist()
            if most == -least and not failed:
                return
            facts = {"the call": what, **facts}
        agree(self._world, what, error, facts)
