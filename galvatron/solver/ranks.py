"""Stages of which each device holds several, which share its memory and its time: what no choice takes less than.

How long such a pipeline takes does not add up from its stages, but each device has a path through the order of all that
no step is shorter than. The mean of these adds up, and so do the bytes of a device at any moment and in the mean of
several, so that with a price on each byte over the budgets a choice is a shortest path here as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from galvatron.solver.charges import Charge, at_end, in_update
from galvatron.solver.spread import fullest
from galvatron.solver.tables import Pipeline, Rates

_ROUNDS = 24
"""Prices are tried so many times."""

FEW_ROUNDS = 3
"""So many times to see what is far from being any good."""

_PRECISE = 1e-4
"""A share of a bound that it is not worth another round for."""


@dataclass(frozen=True, eq=False)
class Ranks:
    """V stages on R devices.

    Attributes:
        pipeline: the stages. The budgets of those of a device add up to its own, and their bytes to no more than the
            device has in use.
        holders: (V,) the device of each stage.
        paths: for each device rates of a path through its own computations.
        bound: rates of what no step is shorter than.
        alone: what is left of a second of a device while all others wait.
    """

    pipeline: Pipeline
    holders: np.ndarray
    paths: tuple[Rates, ...]
    bound: Rates
    alone: float = 1.0

    @property
    def devices(self) -> int:
        """R."""
        return len(self.paths)

    @cached_property
    def budget(self) -> np.ndarray:
        """(R,) bytes of each device."""
        return np.bincount(self.holders, self.pipeline.budget, self.devices)

    @cached_property
    def seconds(self) -> np.ndarray:
        """(V, K, S) of a step, of which no choice takes less than the sum over its layers."""
        chain = self.pipeline.chain
        missing = np.isinf(chain.total_s)
        seconds = np.tensordot(self.bound.own, np.where(missing[:, None], 0.0, chain.micro_s), axes=(1, 1))
        return np.where(missing, np.inf, seconds + chain.step_s / self.devices)

    @property
    def fits(self) -> bool:
        """Whether all devices together have the bytes that every layer takes at least."""
        chain = self.pipeline.chain
        least = np.where(np.isfinite(chain.total_s), self.pipeline.full.min(axis=0), np.inf).min(axis=1)
        return bool(least[chain.kinds].sum() <= self.budget.sum() * (1 + 1e-12))

    @cached_property
    def least_s(self) -> float:
        """What no choice takes less than, whatever memory there is: its layers add up, and are whole on the slowest
        device."""
        own = np.array([self.paths[device].own[stage] for stage, device in enumerate(self.holders)])
        slowest_s = fullest(self._least_s(self.alone * own.min(axis=0), 1.0), self.devices)
        return max(slowest_s, float(self._least_s(self.bound.own.min(axis=0), 1 / self.devices).sum()))

    def _least_s(self, rates: np.ndarray, once: float) -> np.ndarray:
        """(L,) the least seconds of each layer, at (F,) rates of its phases, and one of what is once per step."""
        chain = self.pipeline.chain
        missing = np.isinf(chain.total_s)
        seconds = np.tensordot(np.where(missing[:, None], 0.0, chain.micro_s), rates, axes=(1, 0))
        return np.where(missing, np.inf, seconds + once * chain.step_s).min(axis=1)[chain.kinds]

    def only(self, columns: np.ndarray) -> Ranks:
        """The same with some of the strategies, in increasing order."""
        return replace(self, pipeline=self.pipeline.only(columns))


_ENDS, _BEGINS = 1, 2
"""Of a layer in its stage: it may be within it, the last one, the first one, or both, which is their sum."""


@dataclass(frozen=True, eq=False)
class Priced:
    """What a choice takes at least without its moves, with a price on what is charged.

    Attributes:
        prices: (R,) seconds of a step for a byte of each device.
        lengths: (4, V, K, S) of layers, by what they are in their stage.
        behind: (L + 1, 2, V) the least length from a layer on, if its stage goes on with it, and if it begins there.
        least_s: no choice that fits takes less.
        over: (R,) bytes over the budgets of a choice that takes as long at these prices.
    """

    ranks: Ranks
    charge: Charge
    prices: np.ndarray
    lengths: np.ndarray
    behind: np.ndarray
    least_s: float
    over: np.ndarray

    @classmethod
    def of(cls, ranks: Ranks, charge: Charge, prices: np.ndarray) -> Priced:
        """At some prices."""
        kinds, stages = ranks.pipeline.chain.kinds, ranks.pipeline.stages
        price = prices[ranks.holders][:, None, None]
        lengths = _by_part(ranks.seconds + price * charge.layer, price * charge.begin, price * charge.end)
        chosen = lengths.argmin(axis=3)[..., None]
        used = _by_part(charge.layer, charge.begin, charge.end)
        least, used = (np.take_along_axis(each, chosen, axis=3)[..., 0] for each in (lengths, used))
        going, ending = (least[part::_BEGINS][..., kinds].transpose(2, 0, 1) for part in (0, _ENDS))
        behind, ends = np.full((len(kinds) + 1, 2, stages), np.inf), np.empty((len(kinds), 2, stages), dtype=bool)
        closed = np.append(np.full(stages - 1, np.inf), 0.0)
        for layer in reversed(range(len(kinds))):
            on_s, end_s = going[layer] + behind[layer + 1, 0], ending[layer] + closed
            np.less(end_s, on_s, out=ends[layer])
            np.minimum(on_s, end_s, out=behind[layer])
            closed[:-1], closed[-1] = behind[layer, 1, 1:], np.inf
        length_s = float(behind[0, 1, 0])
        paid_s = ranks.pipeline.paid_s(prices[ranks.holders]).sum()
        over = np.full(ranks.devices, np.nan)
        if np.isfinite(length_s):
            parts, stage = _path(ends)
            over = np.bincount(ranks.holders[stage], used[parts, stage, kinds], ranks.devices) - ranks.budget
        return cls(ranks, charge, prices, lengths, behind, float(length_s - paid_s), over)

    def by_layer(self, known_s: float) -> np.ndarray:
        """(L, S) whether a layer may have a strategy in a choice that takes no more than what is known."""
        kinds, stages = self.ranks.pipeline.chain.kinds, self.ranks.pipeline.stages
        paid_s = self.ranks.pipeline.paid_s(self.prices[self.ranks.holders]).sum()
        limit_s = known_s + paid_s + 1e-11 * (abs(known_s) + paid_s)
        least = self.lengths.min(axis=3)
        before = np.full((2, stages), np.inf)
        before[1, 0] = 0.0
        result = np.empty((len(kinds), self.lengths.shape[3]), dtype=bool)
        for layer, kind in enumerate(kinds):
            going, closed = self.behind[layer + 1, 0], np.append(self.behind[layer + 1, 1, 1:], np.inf)
            if layer + 1 == len(kinds):
                closed[-1] = 0.0
            own = self.lengths[:, :, kind] + np.repeat(before, 2, axis=0)[..., None]
            through_s = own + np.stack([going, closed, going, closed])[..., None]
            result[layer] = (through_s <= limit_s).any(axis=(0, 1))
            up = (least[:, :, kind] + np.repeat(before, 2, axis=0)).reshape(2, 2, stages).min(axis=0)
            before = np.stack([up[0], np.append(np.inf, up[1, :-1])])
        return result


def _by_part(layer: np.ndarray, begin: np.ndarray, end: np.ndarray) -> np.ndarray:
    """(4, V, K, S) of layers, by what they are in their stage."""
    return np.stack([layer, layer + end, layer + begin, layer + begin + end])


def _path(ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(L,) what each layer of a shortest path is in its stage, and (L,) its stage.

    Args:
        ends: (L, 2, V) whether its stage ends with a layer, if it goes on with it, and if it begins there.
    """
    parts, stages, begins, stage = [], [], 1, 0
    for last in ends.tolist():
        end = last[begins][stage]
        parts.append(_BEGINS * begins + _ENDS * end)
        stages.append(stage)
        begins, stage = int(end), stage + end
    return np.array(parts), np.array(stages)


@dataclass(frozen=True, eq=False)
class RankBounds:
    """Bounds of stages that share devices: each of them holds."""

    priced: tuple[Priced, ...]

    @property
    def least_s(self) -> float:
        """What no choice takes less than."""
        return max(each.least_s for each in self.priced)

    def columns(self, known_s: float) -> np.ndarray:
        """The strategies that some layer may have in a choice that is no slower than one that is known."""
        return np.flatnonzero(self.by_layer(known_s).any(axis=0))

    def by_layer(self, known_s: float) -> np.ndarray:
        """(L, S) whether a layer may have a strategy in such a choice."""
        return np.all([each.by_layer(known_s) for each in self.priced], axis=0)


def rank_bounds(ranks: Ranks, known_s: float, rounds: int = _ROUNDS) -> RankBounds:
    """Bounds, no better than it takes to tell that nothing beats what is known.

    Args:
        rounds: how often prices are tried.
    """
    charges = [at_end(ranks.pipeline)]
    if (ranks.pipeline.updating > ranks.pipeline.full).any():
        charges.append(in_update(ranks.pipeline))
    found: list[Priced] = []
    for charge in charges:
        found.append(_best(ranks, charge, known_s, rounds))
        if found[-1].least_s >= known_s:
            break
    return RankBounds(tuple(found))


def _best(ranks: Ranks, charge: Charge, known_s: float, rounds: int) -> Priced:
    """At about the best prices: first one for all bytes, then each device's own."""
    best = small = Priced.of(ranks, charge, np.zeros(ranks.devices))
    if (best.over <= 0).all() or not np.isfinite(best.least_s):
        return best
    price = best.least_s / max(1.0, float(ranks.budget.sum()))
    over = best.over.sum() > 0
    for _ in range(rounds if over else 0):  # a price that is too high, or one at which nothing is left to find
        found = Priced.of(ranks, charge, np.full(ranks.devices, price))
        best = max(best, found, key=_least_s)
        if best.least_s >= known_s or not np.isfinite(best.least_s):
            return best
        if found.over.sum() <= 0:
            break
        small, price = found, 4 * price
    else:
        if over:
            return best
    if over:
        best = max(best, _between(ranks, charge, small, found, known_s, rounds), key=_least_s)
    return _ascended(best, known_s, rounds)


def _between(ranks: Ranks, charge: Charge, low: Priced, high: Priced, known_s: float, rounds: int) -> Priced:
    """At the best price for all bytes alike, between one that is too low and one that is too high."""
    best = max(low, high, key=_least_s)
    for _ in range(rounds):
        # Where the lines meet that the choices at both prices are on.
        rise, fall = low.over.sum(), high.over.sum()
        if rise - fall <= 0:
            break
        at = (high.least_s - low.least_s + rise * low.prices[0] - fall * high.prices[0]) / (rise - fall)
        found = Priced.of(ranks, charge, np.full(ranks.devices, at))
        told_s = low.least_s + rise * (at - low.prices[0])
        best = max(best, found, key=_least_s)
        if best.least_s >= known_s or found.least_s >= told_s * (1 - _PRECISE):
            break
        low, high = (found, high) if found.over.sum() > 0 else (low, found)
    return best


def _ascended(best: Priced, known_s: float, rounds: int) -> Priced:
    """With a price for each device, by steps along what is over (Polyak, 1969) towards what is known."""
    at, wanted_s, scale = best, known_s if np.isfinite(known_s) else best.least_s * 1.05, 1.0
    for _ in range(rounds):
        length = (at.over**2).sum()
        if best.least_s >= known_s or not length or scale < 1 / 64:
            break
        prices = np.maximum(0.0, at.prices + scale * (wanted_s - at.least_s) * at.over / length)
        found = Priced.of(best.ranks, best.charge, prices)
        if found.least_s > best.least_s:
            best = found
        else:
            scale /= 2
        at = found if found.least_s >= best.least_s - abs(best.least_s) * 0.02 else best
    return best


def _least_s(priced: Priced) -> float:
    return priced.least_s


def balanced(weights: np.ndarray, shares: Sequence[float]) -> np.ndarray:
    """(V + 1,) borders of stages that have such shares of the weights of all layers, each of at least one layer."""
    before = np.concatenate([[0.0], np.cumsum(weights)])
    wanted = before[-1] * np.cumsum(shares) / np.sum(shares)
    borders, count = [0], len(shares)
    for index in range(1, count):
        end = int(abs(before - wanted[index - 1]).argmin()) if np.isfinite(wanted[index - 1]) else 0
        borders.append(min(max(end, borders[-1] + 1), len(weights) - count + index))
    return np.array([*borders, len(weights)])
