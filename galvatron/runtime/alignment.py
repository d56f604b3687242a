"""The clocks of all ranks beside that of rank 0, by messages that go there and back (Cristian 1989)."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from galvatron.runtime import comm, failure
from galvatron.runtime.mesh import World

_ROUNDS = 16
"""Of which the shortest counts."""


@dataclass(frozen=True)
class ClockOffset:
    """What is to be added to this rank's `time.perf_counter()` for that of rank 0, and by how much that may be wrong:
    half of the time that the message took there and back."""

    seconds: float = 0.0
    error_s: float = 0.0


def clock_offset(world: World) -> ClockOffset:
    """How far this rank's clock is behind that of rank 0. Collective; rank 0 answers the others one after the other."""
    if world.size == 1:
        return ClockOffset()
    group, device = comm.all_ranks(), world.device
    if torch.device("cpu") in group._device_types:
        device = torch.device("cpu")
    found = ClockOffset(error_s=float("inf")) if world.rank else ClockOffset()
    with failure.guarded("comparing clocks"):
        for rank in range(1, world.size):
            for _ in range(_ROUNDS if world.rank in (0, rank) else 0):
                box = torch.zeros(1, dtype=torch.float64, device=device)
                if world.rank == 0:
                    comm.receive([box], group, rank, phase="clocks").wait()
                    comm.send([box.fill_(time.perf_counter())], group, rank, phase="clocks").wait()
                    continue
                sent_s = time.perf_counter()
                comm.send([box], group, 0, phase="clocks").wait()
                comm.receive([box], group, 0, phase="clocks").wait()
                there_s, back_s = box.item(), time.perf_counter()
                if (back_s - sent_s) / 2 < found.error_s:
                    found = ClockOffset(there_s - (sent_s + back_s) / 2, (back_s - sent_s) / 2)
    return found
