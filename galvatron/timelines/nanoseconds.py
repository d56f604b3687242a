"""Moments in whole nanoseconds, so that whoever reads a timeline finds its slices in each other or apart.

A viewer that counts in whole nanoseconds rounds the beginning of a slice and its length, each for itself, and then a
slice that ends with the one around it may seem to end behind it. Perfetto leaves such a slice out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from galvatron.timelines.timeline import Slice

_ROUNDING_S = 1e-12
"""By how much slices that touch may seem to overlap."""


def in_nanoseconds(track: Iterable[Slice]) -> Iterator[tuple[Slice, int, int]]:
    """The slices of one track, which are in each other or apart, in their order, each with the nanoseconds at which it
    begins and ends: these are in each other or apart, too."""
    around: list[tuple[float, int]] = []
    begin = 0
    for one in track:
        begin = max(begin, nanoseconds(one.begin_s))
        while around and one.begin_s >= around[-1][0] - _ROUNDING_S:
            begin = max(begin, around.pop()[1])
        end = max(begin, nanoseconds(one.end_s))
        if around:
            begin, end = (min(moment, around[-1][1]) for moment in (begin, end))
        around.append((one.end_s, end))
        yield one, begin, end


def nanoseconds(seconds: float) -> int:
    """The nearest whole number of them."""
    return round(seconds * 1e9)


def microseconds(whole: int) -> float:
    """Nanoseconds as a file has them, so that they are the same for those who round and for those who cut off."""
    found = whole / 1000
    return found if int(found * 1000) == whole else math.nextafter(found, math.inf)
