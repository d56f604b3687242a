"""Good choices for a single stage, found fast, so that bounds have something to be compared with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from galvatron.solver.relaxation import Weights
from galvatron.solver.tables import Pipeline

_SWAPS = 32


@dataclass(frozen=True, eq=False)
class _Lengths:
    """A length of each strategy of each layer (L, S), and of each move to a layer (L, G, G), of a single stage."""

    layer: np.ndarray
    move: np.ndarray
    place: np.ndarray

    @classmethod
    def of(cls, pipeline: Pipeline, weights: Weights) -> _Lengths:
        chain = pipeline.chain
        layer = weights.layer[0, chain.kinds]
        layer[0] += weights.begin[0, chain.kinds[0]]
        layer[-1] += weights.end[0, chain.kinds[-1]]
        return cls(layer, weights.move[0, chain.moves], chain.place)

    def spliced(self, before: np.ndarray, behind: np.ndarray) -> np.ndarray:
        """(L - 1,) of the choices that are as one up to a layer and as the other behind it."""
        steps = np.arange(1, len(before))
        moved = self.move[steps, self.place[before[:-1]], self.place[behind[1:]]]
        return self._sums(before)[:-1] + moved + self._sums(behind, reverse=True)[1:]

    def _sums(self, choice: np.ndarray, reverse: bool = False) -> np.ndarray:
        """(L,) of the layers up to each, or from each on."""
        steps = np.arange(len(choice))
        places = self.place[choice]
        own, moved = self.layer[steps, choice], self.move[steps[1:], places[:-1], places[1:]]
        if reverse:
            return np.cumsum((own + np.append(moved, 0.0))[::-1])[::-1]
        return np.cumsum(own + np.concatenate([[0.0], moved]))

    def total(self, choice: np.ndarray) -> float:
        """Of a choice."""
        return float(self._sums(choice)[-1])

    def swapped(self, choice: np.ndarray) -> np.ndarray:
        """(L, S) what a choice is longer by if one layer has another strategy."""
        steps, places = np.arange(len(choice)), self.place[choice]
        around = self.layer.copy()
        around[1:] += self.move[steps[1:], places[:-1]][:, self.place]
        around[:-1] += self.move[steps[1:], :, places[1:]][:, self.place]
        return around - around[steps, choice][:, None]


def improved(pipeline: Pipeline, seconds: Weights, bytes_: Weights, fast: np.ndarray, small: np.ndarray) -> np.ndarray:
    """A choice that fits, made of two: one that is faster, and one that fits.

    It is the fastest that begins as one of them and goes on as the other, and then is changed layer by layer for as
    long as that makes it faster.
    """
    in_seconds, in_bytes = _Lengths.of(pipeline, seconds), _Lengths.of(pipeline, bytes_)
    budget = float(pipeline.budget[0])
    best, best_s = small, in_seconds.total(small)
    for before, behind in ((fast, small), (small, fast)):
        fits = in_bytes.spliced(before, behind) <= budget
        spliced_s = np.where(fits, in_seconds.spliced(before, behind), np.inf)
        if len(spliced_s) and spliced_s.min() < best_s:
            cut, best_s = int(spliced_s.argmin()) + 1, float(spliced_s.min())
            best = np.concatenate([before[:cut], behind[cut:]])
    for _ in range(_SWAPS):
        left = budget - in_bytes.total(best)
        saved_s = np.where(in_bytes.swapped(best) <= left, in_seconds.swapped(best), np.inf)
        layer, strategy = np.unravel_index(int(saved_s.argmin()), saved_s.shape)
        if not saved_s[layer, strategy] < 0:
            break
        best = best.copy()
        best[layer] = strategy
    return best
