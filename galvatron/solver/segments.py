"""Lower bounds of stages, each as if it were alone, and of the ways to divide the layers into them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from galvatron.solver.charges import at_end, in_update
from galvatron.solver.relaxation import Weights, reached_by, scaled
from galvatron.solver.tables import Pipeline, Rates


@dataclass(frozen=True, eq=False)
class Division:
    """What stages take per micro-batch at least, and so what all of them do however layers are divided.

    Attributes:
        least_s: (P, L, L + 1) of a stage with layers `begin..end - 1`; infinite where these do not fit.
        ahead_s, ahead_total_s: (P + 1, L + 1) the least that the slowest stage takes, and all together, of the stages
            from one on, if it begins with a layer.
        before_s, before_total_s: the same of the stages before it.
    """

    least_s: np.ndarray
    ahead_s: np.ndarray
    ahead_total_s: np.ndarray
    before_s: np.ndarray
    before_total_s: np.ndarray

    @classmethod
    def of(cls, least_s: np.ndarray) -> Division:
        """From the least seconds of each stage."""
        stages, layers, _ = least_s.shape
        ahead_s, ahead_total_s, before_s, before_total_s = np.full((4, stages + 1, layers + 1), np.inf)
        ahead_s[stages, layers] = ahead_total_s[stages, layers] = before_s[0, 0] = before_total_s[0, 0] = 0.0
        for index in reversed(range(stages)):
            ahead_s[index, :-1] = np.maximum(least_s[index], ahead_s[index + 1]).min(axis=1)
            ahead_total_s[index, :-1] = (least_s[index] + ahead_total_s[index + 1]).min(axis=1)
        for index in range(stages):
            before_s[index + 1] = np.maximum(before_s[index, :-1, None], least_s[index]).min(axis=0)
            before_total_s[index + 1] = (before_total_s[index, :-1, None] + least_s[index]).min(axis=0)
        return cls(least_s, ahead_s, ahead_total_s, before_s, before_total_s)

    @property
    def slowest_s(self) -> float:
        """The least that the slowest stage takes."""
        return float(self.ahead_s[0, 0])

    def begin_s(self, whole: float, slow: float) -> np.ndarray:
        """(P, L) what no division takes less than in which a stage begins with a layer."""
        total_s = (self.before_total_s + self.ahead_total_s)[:-1, :-1]
        slowest_s = np.maximum(self.before_s, self.ahead_s)[:-1, :-1]
        return np.where(np.isfinite(total_s), scaled(total_s, whole) + scaled(slowest_s, slow), np.inf)

    def borders(self) -> np.ndarray | None:
        """(P + 1,) those of a division in which the slowest stage is fastest; None if no stages fit."""
        if not np.isfinite(self.slowest_s):
            return None
        stages, layers, _ = self.least_s.shape
        found = [0]
        for index in range(stages):
            slowest_s = np.maximum(self.least_s[index, found[-1]], self.ahead_s[index + 1])
            # Of equally good ends, the one that leaves stages equally long.
            even = layers * (index + 1) / stages
            ends = np.flatnonzero(slowest_s <= self.slowest_s)
            found.append(int(ends[abs(ends - even).argmin()]))
        return np.array(found)


def fitting(pipeline: Pipeline) -> np.ndarray:
    """(P, L, L + 1) the least seconds of each stage; infinite where its layers do not fit under any strategies."""
    nothing, one = np.zeros(pipeline.stages), np.ones(pipeline.stages)
    least_s = _lengths(pipeline, Weights.of(pipeline, Rates.even(pipeline, 1.0), 0.0, nothing, at_end(pipeline)))
    for charge in (at_end(pipeline), in_update(pipeline)):
        least_bytes = _lengths(pipeline, Weights.of(pipeline, Rates.even(pipeline, 0.0), 0.0, one, charge))
        least_s[least_bytes > pipeline.budget[:, None, None]] = np.inf
    return least_s


def priced(pipeline: Pipeline, prices: np.ndarray) -> np.ndarray:
    """(P, L, L + 1) what each stage takes at least, by a price in seconds per micro-batch for a byte of each."""
    lengths = _lengths(pipeline, Weights.of(pipeline, Rates.even(pipeline, 1.0), 0.0, prices, at_end(pipeline)))
    return lengths - pipeline.paid_s(prices)[:, None, None]


def _lengths(pipeline: Pipeline, weights: Weights) -> np.ndarray:
    """(P, L, L + 1) the least length of a path through the layers from one on and before another."""
    chain = pipeline.chain
    result = np.full((pipeline.stages, chain.layers, chain.layers + 1), np.inf)
    reached = np.empty((pipeline.stages, 0, chain.strategies))
    for layer, (kind, move) in enumerate(zip(chain.kinds, chain.moves, strict=True)):
        if layer:
            steps = weights.move[:, move]
            reached = np.stack([reached_by(chain, s, r) for r, s in zip(reached, steps, strict=True)])
        reached = np.concatenate([reached, weights.begin[:, None, kind]], axis=1) + weights.layer[:, None, kind]
        result[:, : layer + 1, layer + 1] = (reached + weights.end[:, None, kind]).min(axis=2)
    return result
