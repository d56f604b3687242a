"""Seconds that were measured on a grid of sizes, between and beyond its points."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import product

from galvatron.ir.records import Rows


class Grid:
    """Seconds by several sizes: between the points of the grid a power of each size, beyond the last in proportion to
    it, below the first as long as there.

    A larger size never takes less: what falls is noise, and is set to what lies before. Points that are missing, as of
    what takes too long to measure, are what the proportion to the points before says.
    """

    def __init__(self, rows: Rows) -> None:
        """Rows are sizes, with their seconds last."""
        *columns, _ = zip(*rows, strict=True)
        self._axes = [sorted(set(column)) for column in columns]
        self._seconds = self._filled({tuple(row[:-1]): row[-1] for row in rows})

    def _filled(self, measured: dict[tuple[float, ...], float]) -> dict[tuple[int, ...], float]:
        """Seconds of every point, by its place on each axis: what was measured, and no less than any point before."""
        axes = self._axes
        seconds: dict[tuple[int, ...], float] = {}
        for place in product(*(range(len(axis)) for axis in axes)):
            before = [(i, (*place[:i], at - 1, *place[i + 1 :])) for i, at in enumerate(place) if at]
            least = max((seconds[other] for _, other in before), default=0.0)
            point = tuple(axis[at] for axis, at in zip(axes, place, strict=True))
            if (found := measured.get(point)) is None:
                found = max(
                    (seconds[other] * axes[i][place[i]] / axes[i][place[i] - 1] for i, other in before),
                    default=min(measured.values()),
                )
            seconds[place] = max(found, least)
        return seconds

    def __call__(self, sizes: Sequence[float]) -> float:
        """Seconds of these sizes."""
        beyond = 1.0
        corners: list[tuple[int, float, float]] = []
        for axis, size in zip(self._axes, sizes, strict=True):
            beyond *= max(1.0, size / axis[-1])
            left = min(max(bisect_right(axis, size) - 1, 0), max(len(axis) - 2, 0))
            if len(axis) == 1 or size <= axis[0]:
                corners.append((0 if size <= axis[0] else left, 1.0, 0.0))
                continue
            share = math.log(min(size, axis[-1]) / axis[left]) / math.log(axis[left + 1] / axis[left])
            corners.append((left, 1 - share, share))
        total = 0.0
        for steps in product((0, 1), repeat=len(corners)):
            weight = math.prod(corner[1 + step] for corner, step in zip(corners, steps, strict=True))
            if weight:
                place = tuple(corner[0] + step for corner, step in zip(corners, steps, strict=True))
                total += weight * math.log(self._seconds[place])
        return beyond * math.exp(total)


class Corrections:
    """What was measured on a grid, relative to what is expected of the same sizes: where sizes between two points do as
    well as others by their nature, as products do by how tiles divide them, a line through the points cannot tell.

    Between points a correction is a power of each size; beyond the last, and below the first, that of the nearest.
    """

    def __init__(self, rows: Rows, expected: Callable[..., float]) -> None:
        """Rows are sizes, with their seconds last."""
        *columns, _ = zip(*rows, strict=True)
        self._axes = [sorted(set(column)) for column in columns]
        self._logs = {tuple(row[:-1]): math.log(row[-1] / expected(*row[:-1])) for row in rows}

    def __call__(self, sizes: Sequence[float]) -> float:
        """Seconds of these sizes over what is expected of them."""
        corners = [_around(axis, size) for axis, size in zip(self._axes, sizes, strict=True)]
        total = weights = 0.0
        for corner in product(*corners):
            # What takes too long was not measured: its neighbours speak for it.
            log = self._logs.get(tuple(size for size, _ in corner))
            if log is not None:
                weight = math.prod(share for _, share in corner)
                total, weights = total + weight * log, weights + weight
        if not weights:
            return 1.0
        return math.exp(total / weights)


def _around(axis: Sequence[float], size: float) -> list[tuple[float, float]]:
    """The points of an axis beside a size, each with its share."""
    if size <= axis[0] or size >= axis[-1]:
        return [(axis[0] if size <= axis[0] else axis[-1], 1.0)]
    right = bisect_right(axis, size)
    share = math.log(size / axis[right - 1]) / math.log(axis[right] / axis[right - 1])
    return [(axis[right - 1], 1 - share), *([(axis[right], share)] if share else [])]
