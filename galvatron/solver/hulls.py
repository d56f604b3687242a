"""What the layers of a device take at least within its memory, whatever order they are in: no moves, and each layer by
itself.

Of the strategies of a layer those are looked at that are on the lower hull of their bytes and seconds. From the
smallest ones on, layers take the step that saves most for its bytes, for as long as bytes are left: that is as good as
any choice but for the last step (Dantzig, 1957).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Hull:
    """Strategies of a layer: bytes and seconds of the smallest one, and what each step to a faster one takes and
    saves, the one first that saves most for each byte."""

    bytes: float
    seconds: float
    taken: np.ndarray
    saved: np.ndarray

    @classmethod
    def of(cls, bytes_: np.ndarray, seconds: np.ndarray) -> Hull:
        """The hull of (S,) strategies, of which those are none whose seconds are infinite."""
        order = np.lexsort((seconds, np.where(np.isfinite(seconds), bytes_, np.inf)))
        corners: list[tuple[float, float]] = []
        for point in zip(bytes_[order].tolist(), seconds[order].tolist(), strict=True):
            if corners and point[1] >= corners[-1][1]:
                continue
            while len(corners) > 1 and _turns(corners[-2], corners[-1], point):
                corners.pop()
            corners.append(point)
        steps = np.diff(np.array(corners), axis=0)
        return cls(*corners[0], steps[:, 0], -steps[:, 1])


def _turns(first: tuple[float, float], second: tuple[float, float], third: tuple[float, float]) -> bool:
    """Whether the second of three points is not below the line through the others."""
    steeper = (first[1] - second[1]) * (third[0] - second[0])
    return steeper <= (second[1] - third[1]) * (second[0] - first[0])


def shared_out(hulls: Sequence[tuple[Hull, int]], budget: float) -> tuple[float, float]:
    """Seconds of layers within a budget, infinite where not all fit; and bytes that are missing then.

    Args:
        hulls: of layers that are alike, and how many these are.
    """
    left = budget - sum(count * own.bytes for own, count in hulls)
    seconds = sum(count * own.seconds for own, count in hulls)
    if left < 0 or not np.isfinite(seconds):
        return np.inf, max(0.0, -left)
    counts = np.concatenate([np.full(len(own.taken), count) for own, count in hulls])
    taken, saved = (np.concatenate([getattr(own, name) for own, _ in hulls]) for name in ("taken", "saved"))
    order = np.argsort(-saved / taken, kind="stable")
    counts, taken, saved = counts[order], taken[order], saved[order]
    filled = np.cumsum(counts * taken)
    whole = int(np.searchsorted(filled, left, side="right"))
    seconds -= float((counts * saved)[:whole].sum())
    if whole < len(filled):
        left -= filled[whole - 1] if whole else 0.0
        seconds -= float(saved[whole] * (left // taken[whole]))
    return seconds, 0.0
