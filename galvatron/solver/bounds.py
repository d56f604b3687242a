"""All bounds of a pipeline: what no choice takes less than, and what no completion of a label does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from galvatron.solver.charges import Charge, at_end, in_update
from galvatron.solver.duals import Dual, dual
from galvatron.solver.filled import Filled
from galvatron.solver.needed import Needed
from galvatron.solver.relaxation import Relaxation
from galvatron.solver.runs import Priced, Staying
from galvatron.solver.segments import Division, fitting, priced
from galvatron.solver.spread import fullest
from galvatron.solver.tables import Pipeline, worth

SLACK = 1e-11
"""Share of all seconds in a bound, those for bytes too, by which rounding may have raised it."""

_ROUNDS = 3
"""How often prices are found for a division, and a division for prices."""


@dataclass(frozen=True, eq=False)
class Left:
    """What is left of a pipeline for choices that are no slower than one that is known.

    Attributes:
        allowed: (P, L, S) whether a layer may be in a stage and have a strategy. enterable: (P, L) whether a stage may
            begin there.
        needed: what stages still need, with these.
        filled: of each relaxation, tables in which bytes are counted; None where nothing limits them.
    """

    allowed: np.ndarray
    enterable: np.ndarray
    needed: Needed
    filled: tuple[Filled | None, ...]


@dataclass(frozen=True, eq=False)
class Bounds:
    """Bounds of a pipeline.

    Attributes:
        pipeline: the problem.
        relaxations: each holds on its own.
        division: of its stages; None where there is one.
        staying: a bound on top, by the first relaxation, of a single stage; None where there is none.
        starts: choices that may be good, and the borders of their stages.
        least_bytes: where nothing fits, what a single stage takes at least; NaN where that is not known.
    """

    pipeline: Pipeline
    relaxations: tuple[Relaxation, ...]
    division: Division | None
    starts: tuple[tuple[np.ndarray, np.ndarray], ...]
    least_bytes: float = 0.0
    staying: Staying | None = None

    @property
    def least_s(self) -> float:
        """What no choice takes less than; infinite where nothing fits."""
        return max((r.least_s + r.slow * self._slowest_s for r in self.relaxations), default=np.inf)

    @property
    def multipliers(self) -> np.ndarray:
        """(P,) what one more byte of each stage saves, in seconds."""
        return np.max([r.prices for r in self.relaxations], axis=0)

    @property
    def _slowest_s(self) -> float:
        return 0.0 if self.division is None else self.division.slowest_s

    def limits_s(self, known_s: float) -> list[float]:
        """What a choice may take that is no slower than one that is known, by each relaxation."""
        return [known_s + SLACK * (abs(known_s) + relaxation.paid_s[0]) for relaxation in self.relaxations]

    def columns(self, known_s: float) -> np.ndarray:
        """The strategies that some layer may have in a choice that is no slower than one that is known, as far as
        prices alone tell."""
        allowed, _ = self._priced(self.limits_s(known_s))
        return np.flatnonzero(allowed.any(axis=(0, 1)))

    def by_layer(self, known_s: float) -> np.ndarray:
        """(L, S) whether a layer may have a strategy in such a choice."""
        allowed, _ = self.allowed(self.limits_s(known_s))
        return np.any(allowed, axis=0)

    @property
    def started(self) -> np.ndarray:
        """The strategies of choices that may be good."""
        return np.unique(np.concatenate([np.empty(0, dtype=int), *(choice for choice, _ in self.starts)]))

    def allowed(self, limits_s: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
        """(P, L, S) whether a layer may be in a stage and have a strategy, and (P, L) whether a stage may begin there.

        Args:
            limits_s: what a choice may take, by each relaxation.
        """
        left = self.left(limits_s)
        return left.allowed, left.enterable

    def left(self, limits_s: Sequence[float]) -> Left:
        """What is left of a pipeline for choices that take no more than some limits, by each relaxation."""
        allowed, enterable = self._priced(limits_s)
        filled: list[Filled | None] = []
        needed = Needed.of(self.pipeline, allowed, enterable)
        for relaxation, limit_s in zip(self.relaxations, limits_s, strict=True):
            counted = not relaxation.charge.updates and relaxation.prices.any()
            filled.append(Filled.of(self.pipeline, relaxation, needed, allowed) if counted else None)
            if (table := filled[-1]) is not None:
                through_s = table.through_s + relaxation.slow * self._slowest_s
                allowed = allowed & np.isfinite(through_s) & (through_s <= limit_s)
        return Left(allowed, enterable, Needed.of(self.pipeline, allowed, enterable), tuple(filled))

    def _priced(self, limits_s: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
        """The same as `allowed`, by prices alone."""
        shape = self.relaxations[0].reached.shape
        allowed, enterable = np.ones(shape, dtype=bool), np.ones(shape[:2], dtype=bool)
        for relaxation, limit_s in zip(self.relaxations, limits_s, strict=True):
            through_s = relaxation.through_s + relaxation.slow * self._slowest_s
            allowed &= np.isfinite(through_s) & (through_s <= limit_s)
            if self.division is not None and relaxation.slow:
                begin_s = self.division.begin_s(relaxation.micro, relaxation.slow)
                enterable &= np.isfinite(begin_s) & (begin_s <= limit_s)
        return allowed, enterable

    def slowest_s(self, stage: np.ndarray, begin: np.ndarray, layer: int, own_s: np.ndarray) -> np.ndarray:
        """What the slowest stage takes at least, if one begins with a layer and takes so long up to another."""
        if self.division is None:
            return own_s
        ends = slice(layer + 1, None)
        whole_s = own_s[:, None] + (self._least_s[ends] - self._least_s[layer + 1])
        ahead_s = np.maximum(whole_s, self.division.ahead_s[stage + 1, ends]).min(axis=1)
        return np.maximum(self.division.before_s[stage, begin], ahead_s)

    @cached_property
    def _least_s(self) -> np.ndarray:
        """(L + 1,) the least seconds per micro-batch of the first layers."""
        chain = self.pipeline.chain
        return np.concatenate([[0.0], np.cumsum(chain.total_s.min(axis=1)[chain.kinds])])


def bounds_of(pipeline: Pipeline) -> Bounds:
    """Bounds of a pipeline, as good as they come cheaply."""
    return _of_stage(pipeline) if pipeline.stages == 1 else _of_stages(pipeline)


def glance(pipeline: Pipeline) -> Bounds:
    """Bounds that come cheaply even with many strategies, so that most of these can be left out first."""
    if pipeline.stages == 1:
        return _of_stage(pipeline)
    chain, starts = pipeline.chain, []
    prices, found = np.zeros(pipeline.stages), False
    for weights in (
        chain.total_s.min(axis=1),
        np.where(np.isfinite(chain.total_s), pipeline.full[0], np.inf).min(axis=1),
    ):
        borders = _balanced(weights[chain.kinds], pipeline.stages)
        found_prices, choice = _prices(pipeline, borders)
        starts.append((choice, borders))
        if not found:
            value = worth(pipeline, choice, borders)
            found = bool((value.bytes <= pipeline.budget).all())
            prices = found_prices if found else prices
    mean = pipeline.whole_s
    whole = max(pipeline.lines, key=lambda line: line[0] + line[1] / pipeline.stages)[0]
    together = Relaxation.of(pipeline, (mean, 0.0), pipeline.wait + mean - whole, mean * prices, at_end(pipeline))
    return Bounds(pipeline, (together,), None, tuple(starts))


def _balanced(weights: np.ndarray, stages: int) -> np.ndarray:
    """(P + 1,) borders of stages of about equal weight, each of at least one layer."""
    before = np.concatenate([[0.0], np.cumsum(weights)])
    borders = [0]
    for index in range(1, stages):
        wanted = before[-1] * index / stages
        end = int(abs(before - wanted).argmin()) if np.isfinite(wanted) else 0
        borders.append(min(max(end, borders[-1] + 1), len(weights) - stages + index))
    return np.array([*borders, len(weights)])


def _of_stage(pipeline: Pipeline) -> Bounds:
    relaxations: list[Relaxation] = []
    starts: list[tuple[np.ndarray, np.ndarray]] = []
    staying, borders = None, np.array([0, pipeline.chain.layers])
    charges = [at_end(pipeline)]
    if (pipeline.updating > pipeline.full).any():
        charges.append(in_update(pipeline))
    for charge in charges:
        found = dual(pipeline, charge)
        if not found.fits:
            return Bounds(pipeline, (), None, (), found.least_bytes)
        starts.append((_fitted(pipeline, charge, found.choice), borders))
        if found.price or charge is charges[0]:
            prices = np.array([found.price])
            relaxations.append(Relaxation.of(pipeline, (pipeline.whole_s, 0.0), 0.0, prices, charge))
        if charge is charges[0]:
            staying = _staying(pipeline, relaxations[0], found)
    return Bounds(pipeline, tuple(relaxations), None, tuple(starts), staying=staying)


def _fitted(pipeline: Pipeline, charge: Charge, choice: np.ndarray) -> np.ndarray:
    """A choice for a single stage that fits at all moments, if one is found soon with a smaller budget."""
    budget, borders = pipeline.budget, np.array([0, pipeline.chain.layers])
    for _ in range(2 * _ROUNDS):
        over = worth(pipeline, choice, borders).bytes - pipeline.budget
        if not (over > 0).any():
            break
        budget = budget - 1.5 * over
        found = dual(replace(pipeline, budget=budget), charge)
        if not found.fits:
            break
        choice = found.choice
    return choice


def _staying(pipeline: Pipeline, relaxation: Relaxation, found: Dual) -> Staying | None:
    if found.seconds is None or found.bytes is None:
        return None
    priced = Priced(relaxation.weights, relaxation.completions)
    return Staying(
        found.seconds.staying(pipeline),
        found.bytes.staying(pipeline),
        priced.staying(pipeline),
        priced.moving(pipeline),
        float(pipeline.budget[0]),
    )


def _of_stages(pipeline: Pipeline) -> Bounds:
    division = Division.of(fitting(pipeline))
    starts: list[tuple[np.ndarray, np.ndarray]] = []
    prices = np.zeros(pipeline.stages)
    for _ in range(_ROUNDS):
        borders = division.borders()
        if borders is None:
            return Bounds(pipeline, (), None, (), np.nan)
        prices, choice = _prices(pipeline, borders)
        starts.append((choice, borders))
        division = Division.of(np.maximum(division.least_s, priced(pipeline, prices)))
    whole, slow = max(pipeline.lines, key=lambda line: line[0] + line[1] / pipeline.stages)
    apart = Relaxation.of(pipeline, (whole, slow), pipeline.wait, whole * prices, at_end(pipeline))
    mean = whole + slow / pipeline.stages
    together = Relaxation.of(pipeline, (mean, 0.0), pipeline.wait + mean - whole, mean * prices, at_end(pipeline))
    return Bounds(pipeline, (apart, together), division, tuple(starts))


def _prices(pipeline: Pipeline, borders: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(P,) the price of a byte of each stage with such borders, in seconds per micro-batch, and (L,) a choice."""
    weight = pipeline.stages * pipeline.whole_s
    prices, choices = [], []
    for index, (first, end) in enumerate(zip(borders[:-1], borders[1:], strict=True)):
        stage = pipeline.stage(index, first, end, weight)
        charge = at_end(stage)
        found = dual(stage, charge)
        prices.append(found.price / weight if weight else 0.0)
        choices.append(_fitted(stage, charge, found.choice))
    return np.array(prices), np.concatenate(choices)


def least_s(pipeline: Pipeline) -> float:
    """What no choice takes less than, whatever memory there is: its layers add up, and are whole in the slowest
    stage."""
    seconds = pipeline.chain.total_s.min(axis=1)[pipeline.chain.kinds]
    slowest_s = fullest(seconds, pipeline.stages)
    return max(whole * float(seconds.sum()) + slow * slowest_s for whole, slow in pipeline.lines)


def least_bytes(pipeline: Pipeline) -> np.ndarray:
    """(S,) what all stages together have in use at least when each layer has the same strategy, without moves: with one
    stage the most at any moment."""
    chain, kinds = pipeline.chain, pipeline.chain.kinds
    full = pipeline.full.min(axis=0)[kinds]
    if pipeline.stages > 1:
        return full.sum(axis=0)
    spent = pipeline.spent[0][kinds]
    running = np.cumsum(full, axis=0) + chain.transient[kinds] + spent.sum(axis=0) - np.cumsum(spent, axis=0)
    running += pipeline.begin[0, kinds[0]] + pipeline.end[0, kinds[-1]][chain.place]
    return np.maximum(running.max(axis=0), pipeline.updating[kinds].sum(axis=0))
