"""What a computation and a communication cost each other while both are under way."""

from __future__ import annotations

from dataclasses import dataclass

from galvatron.errors import ClusterError
from galvatron.ir.arrays import larger, smaller


@dataclass(frozen=True)
class Contention:
    """What is left of the speed of a computation and of a communication that run at the same time, from 0 to 1.

    Both at full speed is 1 and 1. Where they add up to 1 or less (threads of a process group that share the cores of a
    processor), one after the other is as good, and that is what the two are taken for.
    """

    compute: float = 1.0
    communication: float = 1.0

    def together_s(self, compute_s: float, communication_s: float) -> float:
        """Seconds until both have ended, of what takes so long by itself and begins at the same time.

        Never less than either, never more than both one after the other, and more of either never takes less. While the
        second is under way the first goes on with a share of its speed, so that each second of one that fits beside the
        other costs that a constant part of a second.
        """
        behind = smaller(1.0, (1 - self.compute) / self.communication)
        beyond = smaller(1.0, (1 - self.communication) / self.compute)
        return larger(compute_s + behind * communication_s, communication_s + beyond * compute_s)

    def exposed_s(self, compute_s: float, communication_s: float) -> float:
        """Seconds that a computation takes longer with a communication beside it."""
        return self.together_s(compute_s, communication_s) - compute_s

    def check(self) -> None:
        """
        Raises:
            ClusterError: what is left is no share.
        """
        for name in ("compute", "communication"):
            if not 0 < getattr(self, name) <= 1:
                raise ClusterError(f"cluster field 'contention.{name}' is a share, not {getattr(self, name)}")


NOTHING_BESIDE = Contention(0.5, 0.5)
"""Where nothing is gained by doing both at once."""
