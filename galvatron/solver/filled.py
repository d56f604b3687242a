"""Lower bounds that keep the budget of a stage: tables of what is behind a layer, and before it, by levels of bytes.

A price lets a choice take too much of the budget at one moment for too little at another, and half of a strategy. Here
bytes are counted, in levels, each layer's rounded down: so tables hold for all choices, and are the sharper the more
levels there are.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

import numpy as np

from galvatron.solver.needed import Needed
from galvatron.solver.pareto import frontier
from galvatron.solver.relaxation import Relaxation, scaled
from galvatron.solver.tables import Pipeline

_LEVELS, _PER_STRATEGY, _WORK = 4096, 32, 2e7
"""At most so many levels, so many for each strategy that there is to choose from, and so many sums in all."""

_STRETCHES = 256
"""Levels are taken together to at most so many where a layer is looked at under every strategy that it may have."""

_ROUNDING = 1e-9
"""Of a level: what rounding may have taken from it."""

_APART = 4
"""At most so many places are told apart, so that tables stay small."""


@dataclass(frozen=True, eq=False)
class _Places:
    """Places, those joined between which moves take least: no move takes less between joint ones.

    Attributes:
        joint: (G,) for each place one of C. of: (S,) for each strategy.
        move_s: (J, C, C) see `Chain`.
        order, starts: strategies by what they are of, and where each of these starts among them.
    """

    joint: np.ndarray
    of: np.ndarray
    move_s: np.ndarray
    order: np.ndarray
    starts: np.ndarray

    @classmethod
    def of_pipeline(cls, pipeline: Pipeline) -> _Places:
        """Those of a pipeline."""
        chain = pipeline.chain
        joint, far = np.arange(chain.places), np.where(np.isfinite(chain.move_s), chain.move_s, 0.0).max(axis=0)
        far = np.maximum(far, far.T)
        left = chain.places
        for a, b in zip(*np.unravel_index(np.argsort(far, axis=None, kind="stable"), far.shape), strict=True):
            if left <= _APART:
                break
            if joint[a] != joint[b]:
                joint[joint == joint[b]] = joint[a]
                left -= 1
        joint = np.unique(joint, return_inverse=True)[1]
        order, starts = np.argsort(joint, kind="stable"), np.searchsorted(np.sort(joint), np.arange(joint.max() + 1))
        move_s = chain.move_s[:, order][:, :, order]
        move_s = np.minimum.reduceat(np.minimum.reduceat(move_s, starts, axis=1), starts, axis=2)
        of = joint[chain.place]
        order = np.argsort(of, kind="stable")
        return cls(joint, of, move_s, order, np.searchsorted(of[order], np.arange(move_s.shape[1])))

    @property
    def count(self) -> int:
        """C."""
        return self.move_s.shape[1]

    def least(self, values: np.ndarray) -> np.ndarray:
        """(C,) the least of (S,) values of the strategies of each."""
        return np.minimum.reduceat(values[self.order], self.starts, axis=0)

    def least_of(self, some: np.ndarray, values: np.ndarray) -> np.ndarray:
        """(C, M) the least of (n, M) values of some strategies of each; infinite where there are none.

        Args:
            some: (n,) in the order of `order`.
        """
        least = np.full((self.count, values.shape[1]), np.inf)
        first = np.searchsorted(self.of[some], np.arange(self.count + 1))
        for row, start, end in zip(least, first, first[1:], strict=False):
            if start < end:
                values[start:end].min(axis=0, out=row)
        return least


@dataclass(frozen=True, eq=False)
class Filled:
    """What is behind a layer at least, if so many bytes are left for it.

    Attributes:
        places: those that tables tell apart.
        low: (P, L) what it needs at least. unit: (P,) bytes of a level.
        behind_s: (P, L, C, M) by place of the layer, and the level of what is left.
        through_s: (P, L, S) what no choice takes less than in which a layer is in a stage and has a strategy.
    """

    places: _Places
    low: np.ndarray
    unit: np.ndarray
    behind_s: np.ndarray
    through_s: np.ndarray

    @classmethod
    def of(cls, pipeline: Pipeline, relaxation: Relaxation, needed: Needed, allowed: np.ndarray) -> Filled:
        """
        Args:
            relaxation: what other stages take at least. allowed: (P, L, S) the strategies that layers may have.
        """
        chain, (stages, layers, _) = pipeline.chain, allowed.shape
        places = _Places.of_pipeline(pipeline)
        most = min(_LEVELS, _PER_STRATEGY * chain.strategies)
        levels = int(min(most, max(16, _WORK / (stages * layers * places.count**2))))
        stretches = int(min(_STRETCHES, max(8, 2 * _WORK / (stages * layers * chain.strategies))))
        low = needed.bytes.min(axis=2)
        used = _least_used(pipeline, allowed)
        room = np.where(np.isfinite(low + used), pipeline.budget[:, None] - low - used, 0.0).max(axis=1)
        unit = np.maximum(room, 1.0) / (levels - 1)
        behind_s = np.full((stages, layers, places.count, levels), np.inf)
        through_s = np.full(allowed.shape, np.inf)
        for stage in range(stages):
            one = _Stage(
                pipeline, places, relaxation, needed, allowed[stage], stage, float(unit[stage]), levels, stretches
            )
            one.fill_behind(low[stage], behind_s[stage])
            one.fill_through(low[stage], used[stage], behind_s[stage], through_s[stage])
        return cls(places, low, unit, behind_s, through_s)

    def ahead_s(self, stage: np.ndarray, layer: int, place: np.ndarray, left: np.ndarray) -> np.ndarray:
        """(n,) what is behind a layer at least, if so many bytes are left of the budget."""
        level = _level(left, self.low[stage, layer], self.unit[stage], self.behind_s.shape[-1])
        found = self.behind_s[stage, layer, self.places.joint[place], np.maximum(level, 0)]
        return np.where(level < 0, np.inf, found)


@dataclass(frozen=True, eq=False)
class _Stage:
    """One stage."""

    pipeline: Pipeline
    places: _Places
    relaxation: Relaxation
    needed: Needed
    allowed: np.ndarray
    stage: int
    unit: float
    levels: int
    stretches: int
    known: dict[Hashable, np.ndarray] = field(default_factory=dict)

    def fill_behind(self, low: np.ndarray, behind_s: np.ndarray) -> None:
        """Fills (L, C, M), from the last layer on."""
        chain = self.pipeline.chain
        for layer in reversed(range(chain.layers)):
            if not np.isfinite(low[layer]):
                continue
            ended_s = self.places.least(self._ended_s(layer))
            need = self.places.least(self.pipeline.end[self.stage, chain.kinds[layer]][chain.place])
            level = np.arange(self.levels)
            first = np.maximum(_down((need - low[layer]) / self.unit), 0)
            behind_s[layer] = np.where(level >= first[:, None], ended_s[:, None], np.inf)
            if layer + 1 < chain.layers and np.isfinite(low[layer + 1]):
                least_s = self._with_layer(layer + 1, low, behind_s[layer + 1])
                moved = self.places.move_s[chain.moves[layer + 1]]
                for place, step in enumerate(scaled(moved, self.relaxation.micro)):
                    going = (step[:, None] + least_s).min(axis=0)
                    np.minimum(behind_s[layer, place], going, out=behind_s[layer, place])

    def _with_layer(self, layer: int, low: np.ndarray, behind_s: np.ndarray) -> np.ndarray:
        """(C, M) of a layer and what is behind it, by what is left before it, the least of each place."""
        some = self._best(layer)
        full = self.pipeline.full[self.stage, self.pipeline.chain.kinds[layer], some]
        shift = -_down((full + low[layer] - low[layer - 1]) / self.unit)
        running = self._running(layer, some)
        first = _down(np.where(np.isfinite(running), full + running - low[layer - 1], 0.0) / self.unit)
        at = self.places.of[some], self.levels + np.clip(shift, -self.levels, self.levels)
        found = _shifted(behind_s, behind_s[:, -1:])[at]
        found += self._own_s(layer, some)[:, None]
        found[np.arange(self.levels) < np.where(np.isfinite(running), first, self.levels)[:, None]] = np.inf
        return self.places.least_of(some, found)

    def fill_through(self, low: np.ndarray, used: np.ndarray, behind_s: np.ndarray, through_s: np.ndarray) -> None:
        """Fills (L, S), from the first layer on."""
        chain = self.pipeline.chain
        before = np.full((self.places.count, self.levels), np.inf)
        for layer in range(chain.layers):
            arrived = None
            if layer and np.isfinite(used[layer - 1 : layer + 1]).all() and np.isfinite(before).any():
                moved = scaled(self.places.move_s[chain.moves[layer]], self.relaxation.micro)
                arrived = np.stack([(step[:, None] + before).min(axis=0) for step in moved.T])
            if np.isfinite(low[layer]) and np.isfinite(used[layer]):
                some = self._some(layer)
                through_s[layer, some] = self._through_s(layer, some, arrived, low, used, behind_s[layer])
            before = np.full_like(before, np.inf) if arrived is None else self._reached(layer, arrived, used)
            if np.isfinite(used[layer]):
                self._begin(layer, used[layer], before)

    def _reached(self, layer: int, arrived: np.ndarray, used: np.ndarray) -> np.ndarray:
        """(C, M) up to a layer and with it, by the level of what is in use, the least of each place.

        Args:
            arrived: (C, M) up to the layer before and to each place, by the level of what is in use there.
        """
        some, kind, stage = self._best(layer), self.pipeline.chain.kinds[layer], self.stage
        shift = _down((self.pipeline.full[stage, kind, some] + used[layer - 1] - used[layer]) / self.unit)
        found = _shifted(arrived, np.inf)[self.places.of[some], self.levels - np.clip(shift, 0, self.levels)]
        found += self._own_s(layer, some)[:, None]
        left = self.pipeline.budget[stage] - used[layer] - np.arange(self.levels) * self.unit
        found[left < self._running(layer, some)[:, None] - self.unit * _ROUNDING] = np.inf
        return self.places.least_of(some, found)

    def _begin(self, layer: int, used: float, reached: np.ndarray) -> None:
        """Has the stage begin with a layer as well, in what is reached with it (C, M)."""
        some, kind, stage = self._some(layer), self.pipeline.chain.kinds[layer], self.stage
        in_use = self.pipeline.full[stage, kind, some] + self.pipeline.begin[stage, kind, some]
        opened_s, level = self._opened_s(layer, some), np.maximum(_down((in_use - used) / self.unit), 0)
        fits = self.pipeline.budget[stage] - in_use >= self._running(layer, some) - self.unit * _ROUNDING
        can = fits & np.isfinite(opened_s) & (level < self.levels)
        np.minimum.at(reached, (self.places.of[some][can], level[can]), (opened_s + self._own_s(layer, some))[can])

    def _through_s(
        self,
        layer: int,
        some: np.ndarray,
        arrived: np.ndarray | None,
        low: np.ndarray,
        used: np.ndarray,
        behind_s: np.ndarray,
    ) -> np.ndarray:
        """(n,) of choices in which a layer has one of some strategies: of several levels before it at once."""
        kind, stage = self.pipeline.chain.kinds[layer], self.stage
        budget, full = self.pipeline.budget[stage], self.pipeline.full[stage, kind, some]
        in_use = self.pipeline.begin[stage, kind, some][:, None]
        before_s = self._opened_s(layer, some)[:, None]
        if arrived is not None:
            starts = np.arange(0, self.levels, -(-self.levels // self.stretches))
            at_once = np.minimum.reduceat(arrived, starts, axis=1)[self.places.of[some]]
            in_use = np.hstack([np.broadcast_to(used[layer - 1] + starts * self.unit, at_once.shape), in_use])
            before_s = np.hstack([at_once, before_s])
        left = budget - full[:, None] - in_use
        level = _level(left, low[layer], self.unit, self.levels)
        after_s = behind_s[self.places.of[some][:, None], np.maximum(level, 0)]
        fits = (level >= 0) & (left >= self._running(layer, some)[:, None] - self.unit * _ROUNDING)
        return self._own_s(layer, some) + np.where(fits, before_s + after_s, np.inf).min(axis=1)

    def _running(self, layer: int, some: np.ndarray) -> np.ndarray:
        """(n,) bytes that must be left beside those in use when a layer runs under some strategies."""
        kind = self.pipeline.chain.kinds[layer]
        peak = self.pipeline.chain.transient[kind, some] + self.needed.peak[self.stage, layer, some]
        return np.where(np.isfinite(peak), peak, np.inf)

    def _opened_s(self, layer: int, some: np.ndarray) -> np.ndarray:
        """(n,) of all stages before, if this one begins with a layer under some strategies."""
        relaxation, stage = self.relaxation, self.stage
        return relaxation.opened[stage, layer, some] - (relaxation.paid_s[0] - relaxation.paid_s[stage])

    def _some(self, layer: int) -> np.ndarray:
        """The strategies that a layer may have, by what they are of: often few."""
        return self.places.order[self.allowed[layer, self.places.order]]

    def _best(self, layer: int) -> np.ndarray:
        """Those of them that no other of their place is better than in all that tables look at."""
        some, kind, stage = self._some(layer), self.pipeline.chain.kinds[layer], self.stage
        running = self._running(layer, some)
        least = running.min(initial=np.finfo(float).max)
        key = kind, some.tobytes(), (running - least).tobytes()
        if key not in self.known:
            figures = (self._own_s(layer, some), self.pipeline.full[stage, kind, some], running)
            self.known[key] = some[np.sort(frontier(self.places.of[some], np.column_stack(figures)))]
        return self.known[key]

    def _own_s(self, layer: int, some: np.ndarray) -> np.ndarray:
        """(n,) of a layer under some strategies."""
        kind, chain = self.pipeline.chain.kinds[layer], self.pipeline.chain
        once_s = chain.step_s[kind, some] / self.pipeline.stages
        return scaled(chain.total_s[kind, some], self.relaxation.micro) + once_s

    def _ended_s(self, layer: int) -> np.ndarray:
        """(S,) of all stages behind, if this one ends with a layer."""
        relaxation, stage = self.relaxation, self.stage
        price_s = relaxation.prices[stage] * relaxation.charge.end[stage, self.pipeline.chain.kinds[layer]]
        later_s = relaxation.paid_s[stage + 1] if stage + 1 < self.pipeline.stages else 0.0
        closed_s = relaxation.closed[stage, layer]
        return np.where(np.isfinite(closed_s), closed_s, np.inf) - price_s - later_s


def _least_used(pipeline: Pipeline, allowed: np.ndarray) -> np.ndarray:
    """(P, L) the least bytes of a stage in use when a layer runs; infinite where it is in none."""
    found = np.full(allowed.shape[:2], np.inf)
    before = np.full(pipeline.stages, np.inf)
    for layer, kind in enumerate(pipeline.chain.kinds):
        possible = allowed[:, layer]
        entered = np.minimum(pipeline.begin[:, kind], before[:, None])
        own = np.where(possible, pipeline.full[:, kind] + entered, np.inf)
        before = found[:, layer] = own.min(axis=1)
    return found


def _shifted(values: np.ndarray, behind: np.ndarray | float) -> np.ndarray:
    """(C, 2 M + 1, M) values from so many levels on as the second index says, less M: nothing is possible before the
    first of them, and behind the last is what is given."""
    count, levels = values.shape
    padded = np.empty((count, 3 * levels))
    padded[:, :levels], padded[:, levels : 2 * levels], padded[:, 2 * levels :] = np.inf, values, behind
    return np.lib.stride_tricks.sliding_window_view(padded, levels, axis=1)


def _down(levels: np.ndarray) -> np.ndarray:
    """Whole levels, but for what rounding may have taken from them."""
    return np.floor(levels + _ROUNDING).astype(int)


def _level(left: np.ndarray, low: np.ndarray, unit: np.ndarray | float, levels: int) -> np.ndarray:
    """The level of what is left; negative where that is less than what is needed."""
    return np.minimum(np.floor((left - low) / unit + _ROUNDING), levels - 1).astype(int)
