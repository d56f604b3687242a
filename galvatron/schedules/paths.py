"""What a step takes at least, whatever its stages take: paths through the order of a schedule."""

from __future__ import annotations

from functools import lru_cache

from galvatron.schedules.actions import Kind, held_over_time
from galvatron.schedules.kinds import Schedule


@lru_cache(maxsize=256)
def paths(schedule: Schedule, degree: int, micro_batches: int) -> tuple[tuple[tuple[float, ...], ...], ...]:
    """For each pipeline rank a path that no step is shorter than: how often each stage is on it, by `Schedule.parts`.

    A rank computes all of its own. Before that the first micro-batch has to come to it, and, where its last computation
    is a backward that another rank waits for, gradients of the last one have to go all the way back.
    """
    holders, parts = schedule.holders(degree), schedule.parts
    forward, backward = ([float(kind in part) for part in parts] for kind in (Kind.FORWARD, Kind.BACKWARD_INPUT))
    if not schedule.splits_backward:
        backward = [float(Kind.BACKWARD in part) for part in parts]
    found: list[tuple[tuple[float, ...], ...]] = []
    orders = schedule.computations(degree, schedule.shorter(degree, micro_batches, 1))
    for rank, order in enumerate(orders):
        first, last = order[0], order[-1]
        counts = [[float(micro_batches) * (holder == rank)] * len(parts) for holder in holders]
        for stage in range(first.stage):
            counts[stage] = [n + f for n, f in zip(counts[stage], forward, strict=True)]
        for stage in range(last.stage if last.direction < 0 else 0):
            counts[stage] = [n + b for n, b in zip(counts[stage], backward, strict=True)]
        found.append(tuple(map(tuple, counts)))
    return tuple(found)


def way_through(schedule: Schedule, degree: int) -> tuple[tuple[float, ...], ...]:
    """The path of one micro-batch, which goes through all stages and back: how often each stage is on it, by
    `Schedule.parts`."""
    each = tuple(float(Kind.BACKWARD_WEIGHT not in part) for part in schedule.parts)
    return (each,) * len(schedule.holders(degree))


@lru_cache(maxsize=256)
def held_when_most(schedule: Schedule, degree: int, micro_batches: int, *, epilogue: bool = False) -> tuple[float, ...]:
    """For each stage the micro-batches that it holds when its rank holds most, in the mean of all such moments."""
    if schedule.stages_per_rank == 1:
        return tuple(map(float, schedule.in_flight(degree, micro_batches, epilogue=epilogue)))
    found = [0.0] * len(schedule.holders(degree))
    for order in schedule.computations(degree, schedule.shorter(degree, micro_batches, 1), epilogue=epilogue):
        moments = {tuple(sorted(held.items())) for held in held_over_time(order)}
        most = max(sum(n for _, n in held) for held in moments)
        fullest = [held for held in moments if sum(n for _, n in held) == most]
        for held in fullest:
            for stage, count in held:
                found[stage] += count / len(fullest)
    return tuple(found)
