"""Pareto frontiers of small cost vectors, many at once."""

from __future__ import annotations

import numpy as np

_BLOCK = 512
_EARLIER = np.triu(np.ones((_BLOCK, _BLOCK), dtype=bool), 1)
"""Whether a row of a block is before another."""


def frontier(groups: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Which rows no other row of their group beats or equals in every column; of equal ones the first is kept.

    Args:
        groups: (rows,) whole numbers. values: (rows, columns) costs, less is better.

    Returns:
        Their indices, in increasing order.
    """
    if len(values) < 2:
        return np.arange(len(values))
    order = np.lexsort((*values.T[::-1], groups))
    groups, values = groups[order], values[order]
    if values.shape[1] == 1:
        kept = np.concatenate([[True], groups[1:] != groups[:-1]])
    elif values.shape[1] == 2:
        kept = _falling(groups, values[:, 1])
    else:
        kept = _undominated(groups, values[:, 1:])
    return np.sort(order[kept])


def _falling(groups: np.ndarray, column: np.ndarray) -> np.ndarray:
    """Which rows are less than all before them in their group; the rows of a group are next to each other."""
    ranks = np.empty(len(column), dtype=np.intp)
    ranks[np.argsort(column, kind="stable")] = np.arange(len(column))
    starts = np.concatenate([[True], groups[1:] != groups[:-1]])
    # Ranks of a later group are below all of an earlier one, so that one running minimum serves all groups.
    ranks = ranks - np.cumsum(starts) * (len(ranks) + 1)
    kept = starts.copy()
    kept[1:] |= ranks[1:] < np.minimum.accumulate(ranks)[:-1]
    return kept


def _undominated(groups: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Which rows do not have a row before them in their group that exceeds them nowhere."""
    kept = np.ones(len(values), dtype=bool)
    starts = np.flatnonzero(np.concatenate([[True], groups[1:] != groups[:-1]]))
    for start, end in zip(starts, [*starts[1:], len(values)], strict=True):
        best = np.empty((0, values.shape[1]))
        for begin in range(start, end, _BLOCK):
            block = values[begin : min(begin + _BLOCK, end)]
            alive = ~_dominated(best, block)
            alive &= ~(_nowhere_above(block, block) & _EARLIER[: len(block), : len(block)]).any(axis=0)
            kept[begin : begin + len(block)] = alive
            best = np.concatenate([best, block[alive]])
    return kept


def _dominated(best: np.ndarray, block: np.ndarray) -> np.ndarray:
    """Which rows of `block` some row of `best` exceeds nowhere."""
    result = np.zeros(len(block), dtype=bool)
    for start in range(0, len(best), _BLOCK):
        result |= _nowhere_above(best[start : start + _BLOCK], block).any(axis=0)
    return result


def _nowhere_above(rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(n, m) whether each of some rows exceeds each of others nowhere: column by column, since there are few."""
    result = np.ones((len(rows), len(others)), dtype=bool)
    for own, other in zip(rows.T, others.T, strict=True):
        result &= own[:, None] <= other
    return result
