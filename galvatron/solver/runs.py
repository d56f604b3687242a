"""A sharper bound in runs of equal layers.

At the best price of a byte two strategies are often equally good, and a choice may mix them at no cost but that of the
moves between them, which a priced path through one alone does not make. So the two are told apart: to stay with a
strategy to the end of a run, which is one choice of known bytes and seconds, and to move at least once before it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from galvatron.solver.relaxation import Weights
from galvatron.solver.tables import Chain, Pipeline


@dataclass(frozen=True, eq=False)
class Priced:
    """Lengths of what follows, and what they are made of."""

    weights: Weights
    completions: np.ndarray

    def staying(self, pipeline: Pipeline) -> np.ndarray:
        """(L, S) the least length of what is behind a layer, if its strategy stays to the end of the run."""
        result = self.completions[0].copy()
        for first, last in _runs(pipeline):
            left = np.arange(last - first, 0, -1)[:, None]
            result[first:last] = left * self._stay(pipeline, last) + self.completions[0, last]
        return result

    def moving(self, pipeline: Pipeline) -> np.ndarray:
        """(L, S) the same if there is a move before the end of the run."""
        result = np.full(self.completions.shape[1:], np.inf)
        for first, last in _runs(pipeline):
            behind = self.weights.layer[0, pipeline.chain.kinds[last]] + self.completions[0, first + 1 : last + 1]
            now = _changed(pipeline.chain, self.weights.move[0, pipeline.chain.moves[last]], behind)
            stay, before = self._stay(pipeline, last), np.arange(last - first)[:, None]
            can = np.isfinite(stay)
            later = before * np.where(can, stay, 0.0)
            result[first:last] = np.minimum.accumulate((now + later)[::-1])[::-1] - later
            result[first:last, ~can] = now[:, ~can]
        return result

    def _stay(self, pipeline: Pipeline, layer: int) -> np.ndarray:
        """(S,) the length of a layer with the strategy of the one before it."""
        own = self.weights.layer[0, pipeline.chain.kinds[layer]]
        return own + np.diagonal(self.weights.move[0, pipeline.chain.moves[layer]])[pipeline.chain.place]


def _changed(chain: Chain, move: np.ndarray, behind: np.ndarray) -> np.ndarray:
    """(n, S) the least of a move (G, G) from each strategy to another one, and of what is behind that (n, S)."""
    elsewhere = move.copy()
    np.fill_diagonal(elsewhere, np.inf)
    least = chain.least_by_place(behind)
    found = (elsewhere + least[:, None, :]).min(axis=2)[:, chain.place]
    if chain.places == chain.strategies:
        return found
    best = behind == least[:, chain.place]
    counted = np.cumsum(best, axis=1)
    before = np.concatenate([np.zeros((len(behind), 1), dtype=int), counted], axis=1)
    first = best & (counted - before[:, np.searchsorted(chain.place, chain.place)] == 1)
    second = chain.least_by_place(np.where(first, np.inf, behind))
    other = np.where(first, second[:, chain.place], least[:, chain.place])
    return np.minimum(found, np.diagonal(move)[chain.place] + other)


def _runs(pipeline: Pipeline) -> list[tuple[int, int]]:
    """The first and the last layer of each run of several."""
    starts, counts = np.unique(pipeline.chain.run_starts, return_counts=True)
    return [(int(s), int(s + n - 1)) for s, n in zip(starts, counts, strict=True) if n > 1]


@dataclass(frozen=True, eq=False)
class Staying:
    """The bound of labels of a single stage.

    Attributes:
        seconds, bytes, priced: (L, S) the least of each behind a layer, if its strategy stays to the end of the run.
        moving: (L, S) the least at a price, if it does not.
    """

    seconds: np.ndarray
    bytes: np.ndarray
    priced: np.ndarray
    moving: np.ndarray
    budget: float

    def bounds_s(
        self, layer: int, strategy: np.ndarray, seconds: np.ndarray, bytes_: np.ndarray, spent_s: np.ndarray
    ) -> np.ndarray:
        """What completions of labels take at least.

        Args:
            seconds, bytes_: what labels have come to. spent_s: at the price.
        """
        at = (layer, strategy)
        staying_s = np.maximum(seconds + self.seconds[at], spent_s + self.priced[at])
        fits = bytes_ + self.bytes[at] <= self.budget * (1 + 1e-12)
        return np.minimum(np.where(fits, staying_s, np.inf), spent_s + self.moving[at])
