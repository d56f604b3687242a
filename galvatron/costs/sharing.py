"""Ranks that share the cores of a processor: how long a pipeline takes where a rank is faster while others wait.

Computations are timed while all ranks compute (`Cluster.sharing`). Ranks that compute get equally much of the cores, so
in a time in which all of them are as fast as that, each is done when it would be if none were ever faster; while only
some compute, that time passes faster. What it says is left of a second: `Pace`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from galvatron.ir.curves import Points

Lines = tuple[tuple[float, float], tuple[float, float]]
"""Two lines, each by what it has of the sum over stages and of the slowest stage."""


def phases_s(lines: Lines, total_s: Any, slowest_s: Any) -> Any:
    """Seconds of the phases of all micro-batches; numbers or arrays.

    Args:
        lines: see `Pace.lines`.
        total_s: of a micro-batch, the sum over stages.
        slowest_s: of a micro-batch, the slowest stage of each phase, added up.
    """
    (a, b), (c, d) = lines
    return np.maximum(a * total_s + b * slowest_s, c * total_s + d * slowest_s)


@dataclass(frozen=True)
class Pace:
    """How long a second of computing is for the ranks of a pipeline, by how many of them compute.

    Attributes:
        shares: for each number of pipeline ranks that compute, from 1 on, what is left of a second. It never falls, and
            grows no faster than they do; the last is 1.
    """

    shares: tuple[float, ...]

    @staticmethod
    def even(degree: int) -> Pace:
        """That of ranks with a device each."""
        return Pace((1.0,) * degree)

    @staticmethod
    def of(sharing: Points, degree: int, world_size: int) -> Pace:
        """That of a pipeline on all ranks of a cluster.

        Args:
            sharing: see `Cluster.sharing`.
            degree: of the pipeline.
        """
        devices = world_size // degree
        return Pace(tuple(_at(sharing, ranks * devices) for ranks in range(1, degree + 1)))

    @property
    def is_even(self) -> bool:
        """Whether it makes no difference who waits."""
        return self.shares[0] == 1.0

    def lines(self, micro_batches: int) -> Lines:
        """What a phase of a schedule takes: the longer of two lines in the sum over stages and the slowest stage.

        First, as if every rank were always as fast as alone: all stages once, and the slowest again for each further
        micro-batch. Second, cores are never idle: stages take their mean, and one more computes in each turn until all
        do. Exact for equal stages, and for a stage besides which no other takes any time.
        """
        degree, alone = len(self.shares), self.shares[0]
        most = min(micro_batches, degree)
        turns = 2 * sum(self.shares[: most - 1]) + (micro_batches + degree + 1 - 2 * most) * self.shares[most - 1]
        return (alone, alone * (micro_batches - 1)), (turns / degree, 0.0)

    def passed(self, computing: Iterable[tuple[int, int]]) -> float:
        """How long a time takes in which all are as fast as when all compute, from 0 to the last end.

        Args:
            computing: begin and end of each computation.
        """
        changes: dict[int, int] = {}
        for begin, end in computing:
            changes[begin] = changes.get(begin, 0) + 1
            changes[end] = changes.get(end, 0) - 1
        total, before, active = 0.0, 0, 0
        for moment in sorted(changes):
            total += (moment - before) * self.shares[max(0, active - 1)]
            before, active = moment, active + changes[moment]
        return total


def _at(sharing: Points, ranks: int) -> float:
    """What is left of a second while so many ranks compute: on the line between the points, which begin with one rank
    or more."""
    if not sharing:
        return 1.0
    before = sharing[0]
    for point in sharing:
        if ranks <= point[0]:
            if point is before:
                return point[1]
            return before[1] + (point[1] - before[1]) * (ranks - before[0]) / (point[0] - before[0])
        before = point
    return 1.0
