"""Curves: seconds by size, as they were measured, and between and beyond what was measured."""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass

Points = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Curve:
    """Seconds of something by its size: through points (size, seconds), both of which increase.

    Between two points it is a power of the size, as most of what is measured looks on two logarithmic scales. Below the
    first it takes as long as there, where latency is all. Beyond the last the rate is that between the last two points,
    or of the last one if it is alone.
    """

    points: Points

    def __post_init__(self) -> None:
        sizes, seconds = zip(*self.points, strict=True)
        assert sizes[0] > 0 and all(a < b for a, b in zip(sizes, sizes[1:], strict=False))
        assert seconds[0] > 0 and all(a <= b for a, b in zip(seconds, seconds[1:], strict=False))

    def __call__(self, size: float) -> float:
        """Seconds at a size."""
        points = self.points
        if size <= points[0][0]:
            return points[0][1]
        if size >= points[-1][0]:
            last_size, last_s = points[-1]
            before_size, before_s = points[-2] if len(points) > 1 else (0.0, 0.0)
            return last_s + (size - last_size) * (last_s - before_s) / (last_size - before_size)
        right = bisect_left(points, (size,))
        (a, a_s), (b, b_s) = points[right - 1], points[right]
        return a_s * (b_s / a_s) ** (math.log(size / a) / math.log(b / a))

    def straight(self, size: float) -> float:
        """Seconds at a size of what has a part that is the same for every size: by lines between the points and beyond
        them. Below the first it takes no less than nothing at size 0."""
        points = self.points
        right = min(max(1, bisect_left(points, (size,))), len(points) - 1)
        (a, a_s), (b, b_s) = ((0.0, 0.0), *points)[-2:] if right == 0 else (points[right - 1], points[right])
        if size < a and a_s * (b - a) < a * (b_s - a_s):
            a, a_s, b, b_s = 0.0, 0.0, a, a_s
        return a_s + (size - a) * (b_s - a_s) / (b - a)

    @staticmethod
    def through(points: list[tuple[float, float]]) -> Curve:
        """The curve of measured points in any order: what falls with the size is noise, and is set to what lies before.

        Several points of one size count as their middle one.
        """
        by_size: dict[float, list[float]] = {}
        for size, seconds in points:
            by_size.setdefault(size, []).append(seconds)
        rising: list[tuple[float, float]] = []
        for size in sorted(by_size):
            middle = sorted(by_size[size])[len(by_size[size]) // 2]
            rising.append((size, max(middle, rising[-1][1] if rising else 0.0)))
        return Curve(tuple(rising))
