"""Lower bounds: what is left of the problem where bytes have a price instead of a limit.

With a price on each byte over the budget (a Lagrangian multiplier) a chain is a shortest path, and its length is a
bound for every price (Handler and Zang, 1980). The price of the best bound says what one more byte would save.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from galvatron.solver.charges import Charge
from galvatron.solver.tables import Chain, Pipeline, Rates

_STEADY = 1e-12
"""Share of a length within which two increments count as equal."""


@dataclass(frozen=True, eq=False)
class Weights:
    """Lengths of a shortest path: (P, K, S) of layers, of beginning and of ending a stage with one, (P, J, G, G) of
    moves and of those that begin a stage."""

    layer: np.ndarray
    begin: np.ndarray
    end: np.ndarray
    move: np.ndarray
    enter: np.ndarray

    @classmethod
    def of(
        cls,
        pipeline: Pipeline,
        rates: Rates,
        once: float,
        prices: np.ndarray,
        charge: Charge,
    ) -> Weights:
        """`rates` for seconds per micro-batch, `once` for each one per step, and a price (P,) for each byte of a stage
        that is charged.
        """
        chain, price = pipeline.chain, prices[:, None, None]
        missing = np.isinf(chain.total_s)
        seconds = np.tensordot(rates.own, np.where(missing[:, None], 0.0, chain.micro_s), axes=(1, 1))
        seconds += once * chain.step_s
        moved_s = _each(chain.move_s, rates.moved)
        return cls(
            layer=np.where(missing, np.inf, seconds + price * charge.layer),
            begin=price * charge.begin,
            end=price * charge.end,
            move=moved_s if charge.move is None else moved_s + price[..., None] * charge.move,
            enter=_each(pipeline.enter_s, rates.moved) + _each(pipeline.receive_s, rates.received),
        )

    def completions(self, pipeline: Pipeline) -> np.ndarray:
        """(P, L, S) the least length of all that comes behind a layer, if it is in a stage and has a strategy."""
        return self.onward(pipeline)[0]

    def onward(self, pipeline: Pipeline) -> tuple[np.ndarray, np.ndarray]:
        """`completions`, and the same if the stage ends with the layer."""
        chain, (stages, _, strategies) = pipeline.chain, self.layer.shape
        result, closed = np.full((2, stages, chain.layers, strategies), np.inf)
        result[-1, -1] = closed[-1, -1] = self.end[-1, chain.kinds[-1]]
        layer = chain.layers - 1
        while layer > 0:
            kind, move = chain.kinds[layer], chain.moves[layer]
            behind = self.layer[:, kind] + result[:, layer]
            before = _onward(chain, self.move[:, move], behind)
            if stages > 1:
                entered = _onward(chain, self.enter[1:, move], self.begin[1:, kind] + behind[1:])
                closed[:-1, layer - 1] = self.end[:-1, chain.kinds[layer - 1]] + entered
                np.minimum(before, closed[:, layer - 1], out=before)
            result[:, layer - 1] = before
            layer -= 1
            left = layer + 1 - max(1, chain.run_starts[layer + 1])
            if stages == 1 and left > 0 and (more := _steady(before, result[:, layer + 1])) is not None:
                times = np.arange(1, left + 1)[:, None]
                result[0, layer - left : layer] = (before + times * more)[::-1]
                layer -= left
        return result, closed

    def reached(self, pipeline: Pipeline) -> tuple[np.ndarray, np.ndarray]:
        """(P, L, S) the least length up to a layer and with it, if it is in a stage and has a strategy; and of what
        comes before it, if the stage begins with it."""
        chain, (stages, _, strategies) = pipeline.chain, self.layer.shape
        result, opened = np.full((2, stages, chain.layers, strategies), np.inf)
        opened[0, 0] = 0.0
        result[0, 0] = self.begin[0, chain.kinds[0]] + self.layer[0, chain.kinds[0]]
        for layer in range(1, chain.layers):
            kind, move = chain.kinds[layer], chain.moves[layer]
            before = result[:, layer - 1]
            least = reached_by(chain, self.move[:, move], before)
            if stages > 1:
                opened[1:, layer] = reached_by(
                    chain, self.enter[1:, move], before[:-1] + self.end[:-1, chain.kinds[layer - 1]]
                )
                np.minimum(least, opened[:, layer] + self.begin[:, kind], out=least)
            result[:, layer] = least + self.layer[:, kind]
        return result, opened

    def path(self, pipeline: Pipeline, completions: np.ndarray) -> np.ndarray:
        """(L,) the strategies of a shortest path of a single stage."""
        chain = pipeline.chain
        first = chain.kinds[0]
        chosen = [int((self.begin[0, first] + self.layer[0, first] + completions[0, 0]).argmin())]
        behind = self.layer[0, chain.kinds] + completions[0]
        for layer in range(1, chain.layers):
            moved = self.move[0, chain.moves[layer], chain.place[chosen[-1]]]
            chosen.append(int((moved[chain.place] + behind[layer]).argmin()))
        return np.array(chosen)

    def length(self, pipeline: Pipeline, path: np.ndarray) -> float:
        """The length of a path of a single stage."""
        chain = pipeline.chain
        kinds, moves = chain.kinds, chain.moves[1:]
        places = chain.place[path]
        length = self.layer[0, kinds, path].sum() + self.move[0, moves, places[:-1], places[1:]].sum()
        return float(length + self.begin[0, kinds[0], path[0]] + self.end[0, kinds[-1], path[-1]])


def _onward(chain: Chain, move: np.ndarray, behind: np.ndarray) -> np.ndarray:
    """(P, S) the least of a move (P, G, G) from each strategy, and of what is behind it (P, S)."""
    return (move + chain.least_by_place(behind)[:, None, :]).min(axis=2)[:, chain.place]


def reached_by(chain: Chain, move: np.ndarray, before: np.ndarray) -> np.ndarray:
    """(P, S) the least of what is before a move (P, S) and of the move (G, G) or (P, G, G), to each strategy."""
    return (chain.least_by_place(before)[:, :, None] + move).min(axis=1)[:, chain.place]


def _steady(after: np.ndarray, before: np.ndarray) -> float | None:
    """How much longer all completions have become, if all have by as much: then so they do in each further layer."""
    known = np.isfinite(after)
    if not known.any() or (known != np.isfinite(before)).any():
        return None
    more = after[known] - before[known]
    least = float(more.min())
    return least if more.max() - least <= _STEADY * abs(after[known]).max() else None


def _each(seconds: np.ndarray, rates: np.ndarray) -> np.ndarray:
    """(P, J, G, G) of (J, G, G), for each stage at its rate."""
    if (rates == rates[0]).all():
        return np.broadcast_to(scaled(seconds, float(rates[0])), (len(rates), *seconds.shape))
    return np.stack([scaled(seconds, float(rate)) for rate in rates])


def scaled(seconds: np.ndarray, factor: float) -> np.ndarray:
    """Times a factor that may be 0, where some are infinite."""
    if factor == 1.0:
        return seconds
    return factor * seconds if factor else np.where(np.isinf(seconds), np.inf, 0.0)


@dataclass(frozen=True, eq=False)
class Relaxation:
    """A bound for every label: no completion of it takes less.

    Attributes:
        micro: seconds of a step for each second per micro-batch of each stage.
        slow: seconds of a step for each second of the slowest stage on top.
        wait: seconds of a step for each second of receiving.
        prices: (P,) seconds of a step for a byte of each stage.
        charge: the bytes that are priced.
        weights: of the layers and moves at these prices.
        completions, closed, reached, opened: (P, L, S) see `Weights.onward` and `Weights.reached`.
    """

    micro: float
    slow: float
    wait: float
    prices: np.ndarray
    charge: Charge
    weights: Weights
    completions: np.ndarray
    closed: np.ndarray
    reached: np.ndarray
    opened: np.ndarray
    paid_s: np.ndarray
    """(P,) what the budgets of a stage and of those behind it cost."""

    @classmethod
    def of(
        cls, pipeline: Pipeline, line: tuple[float, float], wait: float, prices: np.ndarray, charge: Charge
    ) -> Relaxation:
        """The bound at some prices.

        Args:
            line: `micro` and `slow`.
        """
        micro, slow = line
        weights = Weights.of(pipeline, Rates.even(pipeline, micro, wait), 1 / pipeline.stages, prices, charge)
        paid_s = np.cumsum(pipeline.paid_s(prices)[::-1])[::-1]
        return cls(
            micro, slow, wait, prices, charge, weights, *weights.onward(pipeline), *weights.reached(pipeline), paid_s
        )

    def onward_s(self, pipeline: Pipeline, layer: int) -> np.ndarray:
        """(P, G, S) what a layer takes, and all behind it, for each place before it and each of its strategies."""
        kind, move = pipeline.chain.kinds[layer], pipeline.chain.moves[layer]
        behind = self.weights.layer[:, kind] + self.completions[:, layer]
        return self.weights.move[:, move][..., pipeline.chain.place] + behind[:, None, :]

    @property
    def through_s(self) -> np.ndarray:
        """(P, L, S) what no choice takes less than in which a layer is in a stage and has a strategy."""
        return self.reached + self.completions - self.paid_s[0]

    @property
    def least_s(self) -> float:
        """What no choice takes less than."""
        return float(self.through_s[0, 0].min())
