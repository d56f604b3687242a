"""Ranks that share the cores of a processor: how long a pipeline takes where a rank is faster while others wait.

Computations are timed while all ranks compute (`Cluster.sharing`). Ranks that compute get equally much of the cores,
and while only some compute, these are faster: what is left of a second of computing then is their `Pace`. Messages
between stages take as long whoever computes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from galvatron.ir.curves import Points


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

    def lines(self, micro_batches: int) -> tuple[tuple[float, float], tuple[float, float]]:
        """What a phase of a schedule takes: the longer of two lines in the sum over stages and the slowest stage.

        First, as if every rank were always as fast as alone: all stages once, and the slowest again for each further
        micro-batch. Second, cores are never idle: stages take their mean, and one more computes in each turn until all
        do. Exact for equal stages, and for a stage besides which no other takes any time.
        """
        degree, alone = len(self.shares), self.shares[0]
        most = min(micro_batches, degree)
        turns = 2 * sum(self.shares[: most - 1]) + (micro_batches + degree + 1 - 2 * most) * self.shares[most - 1]
        return (alone, alone * (micro_batches - 1)), (turns / degree, 0.0)

    def phases_s(self, micro_batches: int, total_s: Any, slowest_s: Any, transfer_s: Any = 0.0) -> Any:
        """Seconds of the phases of a schedule: the longer of the two lines, behind what the first micro-batch waits for
        on its way; numbers or arrays.

        Args:
            total_s: computing of a micro-batch, the sum over stages.
            slowest_s: of a micro-batch, the slowest stage of each phase, added up; what it receives is as long as what
                would be computed meanwhile without others (`beside`).
            transfer_s: what all stages wait for to receive a micro-batch and its gradients.
        """
        (a, b), (c, d) = self.lines(micro_batches)
        return transfer_s + np.maximum(a * total_s + b * slowest_s, c * total_s + d * slowest_s)

    def beside(self, transfer_s: float) -> float:
        """How long a rank could compute, in seconds of which all ranks have equally much of the cores, while it waits
        for a message and no other computes."""
        return transfer_s / self.shares[0]


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
