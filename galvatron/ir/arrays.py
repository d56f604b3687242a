"""The larger and the smaller of two figures, each a number or an array of many."""

from __future__ import annotations

from typing import Any

import numpy as np


def larger(one: Any, other: Any) -> Any:
    """The larger of two."""
    return np.maximum(one, other) if _many(one, other) else max(one, other)


def smaller(one: Any, other: Any) -> Any:
    """The smaller of two."""
    return np.minimum(one, other) if _many(one, other) else min(one, other)


def _many(*figures: Any) -> bool:
    return any(isinstance(figure, np.ndarray) for figure in figures)
