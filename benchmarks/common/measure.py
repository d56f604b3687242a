"""Steps timed in turn, and ratios with their spread."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from galvatron import runtime as rt


@dataclass(frozen=True)
class Times:
    """Seconds of each timed step of one contestant: wall-clock of the slowest rank, CPU of all ranks together."""

    wall_s: list[float]
    cpu_s: list[float]


@dataclass(frozen=True)
class Spread:
    """Least, quartiles and greatest of some figures."""

    min: float
    lower: float
    median: float
    upper: float
    max: float

    @staticmethod
    def of(figures: Sequence[float]) -> Spread:
        """The spread of at least one figure."""
        several = [*figures, *figures] if len(figures) == 1 else figures
        lower, median, upper = statistics.quantiles(several, n=4, method="inclusive")
        return Spread(min(figures), lower, median, upper, max(figures))

    def __str__(self) -> str:
        return f"{self.median:.3f} ({self.lower:.3f}..{self.upper:.3f})"


def ratios(own: Sequence[float], peer: Sequence[float]) -> Spread:
    """The spread of own / peer, round by round."""
    return Spread.of([a / b for a, b in zip(own, peer, strict=True)])


def in_turn(
    steps: Mapping[str, Callable[[], Any]], rounds: int, *, warm: int = 2, before: int = 0, span_s: float = 0.0
) -> dict[str, Times]:
    """Times of each step over rounds in which every one takes its turn, each round beginning with another.

    Collective in a job of several ranks, which all get the same figures.

    Args:
        warm: rounds before those that are timed.
        before: steps of a contestant right before those that are timed: what a step leaves under way, such as gathers
            of new values, is then met by the next one, as in training.
        span_s: a turn is as many steps as take at least so long by the warm rounds, and the time is that of one of
            them: what happens once in a while then counts as often as it happens.
    """
    times = {name: Times([], []) for name in steps}
    counts = dict.fromkeys(steps, 1)
    names = list(steps)
    for turn in range(warm + rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            wall_s, cpu_s = _timed(steps[name], before, counts[name])
            if turn >= warm:
                times[name].wall_s.append(wall_s)
                times[name].cpu_s.append(cpu_s)
            else:
                counts[name] = max(1, math.ceil(span_s / wall_s))
    return times


def _timed(step: Callable[[], Any], before: int, count: int) -> tuple[float, float]:
    several = dist.is_initialized()
    _wait_for_device()
    if several:
        dist.barrier()
    for _ in range(before):
        step()
    _wait_for_device()
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(count):
        step()
    _wait_for_device()
    passed = [time.perf_counter() - wall, time.process_time() - cpu]
    figures = torch.tensor(passed, dtype=torch.float64) / count
    if several:
        dist.all_reduce(figures[0], dist.ReduceOp.MAX)
        dist.all_reduce(figures[1])
    return float(figures[0]), float(figures[1])


def _wait_for_device() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def sent_by(step: Callable[[], Any]) -> str:
    """What this rank sends in one step: `24 all_reduce 25.2 MiB`, by kind."""
    with rt.CommunicationCounter() as counter:
        step()
    total: dict[str, list[int]] = {}
    for channel in sorted(counter.messages):
        figures = total.setdefault(channel.kind, [0, 0])
        figures[0] += counter.messages[channel]
        figures[1] += counter.sent_bytes[channel]
    return ", ".join(f"{count} {kind} {size / 2**20:.1f} MiB" for kind, (count, size) in total.items())
