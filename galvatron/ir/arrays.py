"""Which of two figures, each a number or an array of many: the larger, the smaller, or the one that is chosen."""

from __future__ import annotations

from typing import Any

import numpy as np


def larger(one: Any, other: Any) -> Any:
    """The larger of two."""
    return np.maximum(one, other) if _many(one, other) else max(one, other)


def smaller(one: Any, other: Any) -> Any:
    """The smaller of two."""
    return np.minimum(one, other) if _many(one, other) else min(one, other)


def chosen(first: Any, one: Any, other: Any) -> Any:
    """The first where a condition holds, the second elsewhere."""
    return np.where(first, one, other) if _many(first) else one if first else other


def _many(*figures: Any) -> bool:
    return any(isinstance(figure, np.ndarray) for figure in figures)
