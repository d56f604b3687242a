"""The clocks of all ranks beside that of rank 0, by messages that go there and back (Cristian 1989)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from galvatron.runtime import comm, failure
from galvatron.runtime.agreement import telling_device
from galvatron.runtime.mesh import World

_ROUNDS = 16
"""Of which the shortest counts."""


@dataclass(frozen=True)
class ClockOffset:
    """What is to be added to this rank's `time.perf_counter()` for that of rank 0, and by how much that may be wrong:
    half of the time that the message took there and back."""

    seconds: float = 0.0
    error_s: float = 0.0

    def until(self, last: ClockOffset) -> ClockOffset:
        """The offset in all of the time from this measurement to a later one, between which clocks drift apart."""
        drift_s = abs(last.seconds - self.seconds) / 2
        return ClockOffset((self.seconds + last.seconds) / 2, max(self.error_s, last.error_s) + drift_s)


def differ_by_at_most(errors_s: Sequence[float]) -> float:
    """Seconds by which the clocks of two ranks may differ, of which each may be wrong by so much."""
    return sum(sorted(errors_s)[-2:])


def clock_offset(world: World) -> ClockOffset:
    """How far this rank's clock is behind that of rank 0. Collective; rank 0 answers the others one after the other."""
    if world.size == 1:
        return ClockOffset()
    group, device = comm.all_ranks(), telling_device(world)
    found = ClockOffset(error_s=float("inf")) if world.rank else ClockOffset()
    with failure.guarded("comparing clocks"):
        for rank in range(1, world.size):
            for _ in range(_ROUNDS if world.rank in (0, rank) else 0):
                box = torch.zeros(1, dtype=torch.float64, device=device)
                if world.rank == 0:
                    comm.receive([box], group, rank, phase="clocks").wait()
                    box.item()  # on an accelerator the wait alone holds up its stream, not this process
                    comm.send([box.fill_(time.perf_counter())], group, rank, phase="clocks").wait()
                    continue
                sent_s = time.perf_counter()
                comm.send([box], group, 0, phase="clocks").wait()
                comm.receive([box], group, 0, phase="clocks").wait()
                there_s, back_s = box.item(), time.perf_counter()
                if (back_s - sent_s) / 2 < found.error_s:
                    found = ClockOffset(there_s - (sent_s + back_s) / 2, (back_s - sent_s) / 2)
    return found
