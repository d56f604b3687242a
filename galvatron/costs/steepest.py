"""What a step takes at least, however its stages share the work.

No step is shorter than a path through the order of its schedule, nor than a mean of paths. How often each stage is on
that mean says what work takes there at least, and a fast plan has its work where that is least. So the best mean is
the one whose least stage is on it most: a game in which one side shares out the work among the stages, and the other
answers with the path that then takes longest.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from galvatron.costs.timeline import MicroBatchTimes, critical_path
from galvatron.schedules import Schedule, paths

_MOST_COMPUTATIONS = 4096
"""In an order of more, ranks wait for so small a part of a step that it is not looked for."""

_ANSWERS = 16
"""Paths that are looked for at the most."""

_CLOSE = 1e-2
"""The game ends when neither side can win more than this share."""

_TURNS = 200
"""Of a game in which all paths are known."""


@lru_cache(maxsize=256)
def steepest(schedule: Schedule, degree: int, micro_batches: int) -> tuple[tuple[float, ...], ...] | None:
    """How often each stage is on the best mean of paths, by `Schedule.parts`, of which each kind of computation is
    taken to be as long as any other; None for orders of very many computations.

    Whatever the stages take, no step takes less than what each takes, so many times.
    """
    stages, parts = len(schedule.holders(degree)), schedule.parts
    if stages * micro_batches * len(parts) > _MOST_COMPUTATIONS:
        return None
    unit = MicroBatchTimes(1.0, 1.0, 1.0).parts(schedule)
    known = [np.array(path) for path in paths(schedule, degree, micro_batches)]
    for _ in range(_ANSWERS):
        weights, shares = _played_out(np.array([path @ unit for path in known]))
        mean = np.tensordot(weights, np.array(known), axes=1)
        times = [MicroBatchTimes(share, share, share) for share in shares.tolist()]
        answer = np.array(critical_path(schedule, degree, micro_batches, times), dtype=float)
        if shares @ answer @ unit <= (mean @ unit).min() * (1 + _CLOSE):
            break
        known.append(answer)
    return tuple(map(tuple, mean.tolist()))


def _played_out(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Good weights of the rows of a table and good shares of its columns, for one who wants much and one who wants
    little of what both then have (regret matching+, Tammelin 2014)."""
    rows, columns = lengths.shape
    weights, shares = np.full(rows, 1 / rows), np.full(columns, 1 / columns)
    for_rows, for_columns = np.zeros(rows), np.zeros(columns)
    mean_weights, mean_shares = np.zeros(rows), np.zeros(columns)
    for turn in range(1, _TURNS + 1):
        won = lengths @ shares
        for_rows += won
        for_rows -= weights @ won
        np.maximum(for_rows, 0.0, out=for_rows)
        if total := for_rows.sum():
            weights = for_rows / total
        lost = weights @ lengths
        for_columns += shares @ lost
        for_columns -= lost
        np.maximum(for_columns, 0.0, out=for_columns)
        if total := for_columns.sum():
            shares = for_columns / total
        mean_weights += turn * weights
        mean_shares += turn * shares
    return mean_weights / mean_weights.sum(), mean_shares / mean_shares.sum()
