"""Pareto frontiers of small cost vectors."""

from __future__ import annotations

import numpy as np

_BLOCK = 512


def frontier(values: np.ndarray, units: np.ndarray) -> np.ndarray:
    """Indices of the rows that no other row beats or equals in every column, lowest first column first.

    Args:
        values: (rows, columns) costs, less is better. units: per column the resolution at which costs are compared; 0
        compares exactly. Of rows that differ by less than
            the resolution one is kept, so the columns of a dropped row are within one unit of a kept one.
    """
    if not len(values):
        return np.empty(0, dtype=np.intp)
    coarse = np.where(units > 0, np.floor(values / np.where(units > 0, units, 1)), values)
    order = np.lexsort(coarse.T[::-1])
    rest = coarse[order, 1:]
    # Equal in all but the first column: the earliest is the best.
    _, first = np.unique(rest, axis=0, return_index=True)
    first.sort()
    order, rest = order[first], rest[first]
    kept = np.empty((0, rest.shape[1]))
    chosen: list[np.ndarray] = []
    for start in range(0, len(order), _BLOCK):
        block = rest[start : start + _BLOCK]
        alive = ~_dominated(kept, block)
        block, indices = block[alive], order[start : start + _BLOCK][alive]
        below = (block[:, None, :] <= block[None, :, :]).all(axis=2)
        alive = ~np.triu(below, 1).any(axis=0)
        kept = np.concatenate([kept, block[alive]])
        chosen.append(indices[alive])
    return np.concatenate(chosen)


def _dominated(kept: np.ndarray, block: np.ndarray) -> np.ndarray:
    """Which rows of `block` some row of `kept` does not exceed in any column."""
    result = np.zeros(len(block), dtype=bool)
    for start in range(0, len(kept), _BLOCK):
        result |= (kept[start : start + _BLOCK, None, :] <= block[None, :, :]).all(axis=2).any(axis=0)
    return result
