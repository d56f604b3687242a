"""The dynamic program: labels of the first layers of a stage, extended by one layer at a time.

A label is what a choice for the layers of a stage so far has come to. It is dropped where it does not fit, where no
completion takes less than what is known already, and where another one of the same stage that begins and ends alike is
worse in nothing. So stages do not multiply: what has come before a stage and what comes behind it enters only by what
it takes at least, and stages that are over are joined once all are known (`joined.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from galvatron.solver.bounds import SLACK, Bounds, Left
from galvatron.solver.charges import Charge
from galvatron.solver.joined import Ended, joined
from galvatron.solver.pareto import frontier
from galvatron.solver.relaxation import scaled
from galvatron.solver.tables import Opening, Pipeline

_AHEAD = 64
"""So many times the labels that are kept are extended, those with the least bounds."""


@dataclass(frozen=True, eq=False)
class Sweep:
    """What a pass over all layers found.

    Attributes:
        choice: (L,) the strategies of the best choice; None if there was none.
        borders: (P + 1,) the first layer of each stage, and L.
        step_s: of that choice; infinite if there was none.
        dropped_s: no choice that was left out for the width takes less.
    """

    choice: np.ndarray | None
    borders: np.ndarray
    step_s: float
    dropped_s: float


class Columns:
    """Where in a label which figure stands.

    `own`, seconds per micro-batch of each phase; `once`, per step; `bytes` while its last layer runs; `peak`, the most
    while any of its layers runs, with what is behind it, and `update`, bytes in the update, both of them `bytes` where
    they cannot be more; `missing`, bytes up to the end of the opening.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        chain, phases = pipeline.chain, pipeline.chain.phases
        self.own = slice(0, phases)
        self.once, self.bytes, self.peak, self.update, self.missing = range(phases, phases + 5)
        self.count = phases + 5
        if not chain.transient.any() and (pipeline.full >= pipeline.spent).all():
            self.peak = self.bytes
        if (pipeline.updating <= pipeline.full).all():
            self.update = self.bytes
        self._made_up_s, self._alone = pipeline.made_up_s, pipeline.stages == 1
        self._opening = chain.opening is not None

    def charged(self, values: np.ndarray, charge: Charge) -> np.ndarray:
        """The bytes of labels that are charged, or more."""
        return values[:, self.update if charge.updates else self.bytes]

    def compared(self, values: np.ndarray) -> np.ndarray:
        """What of labels is compared: less is better."""
        used = list(dict.fromkeys((self.bytes, self.peak, self.update)))
        return np.column_stack([self.seconds(values), values[:, used + [self.missing] * self._opening]])

    def seconds(self, values: np.ndarray) -> np.ndarray:
        """The seconds of labels, as `compared`."""
        own_s = values[:, self.own]
        cost_s = self._made_up_s * own_s.sum(axis=1) + values[:, self.once]
        return cost_s[:, None] if self._alone else np.column_stack([cost_s, own_s])


@dataclass(frozen=True, eq=False)
class Front:
    """Labels behind one layer: (n, columns) figures; (n,) stages, the layers that these begin with and the places of
    them; (n,) strategies, and (n,) labels that they extend, -1 at the beginning of a stage.

    They are in the order of their choices.
    """

    values: np.ndarray
    stage: np.ndarray
    begin: np.ndarray
    first: np.ndarray
    strategy: np.ndarray
    parent: np.ndarray

    def picked(self, rows: np.ndarray) -> Front:
        """Some of them."""
        return Front(*(part[rows] for part in self._parts))

    def with_others(self, other: Front) -> Front:
        """These, and others."""
        return Front(*(np.concatenate(pair) for pair in zip(self._parts, other._parts, strict=True)))

    @property
    def _parts(self) -> tuple[np.ndarray, ...]:
        return self.values, self.stage, self.begin, self.first, self.strategy, self.parent


def sweep(bounds: Bounds, left: Left, known_s: float, width: int | None) -> Sweep:
    """The best choice that takes no more than `known_s`.

    Args:
        left: what is left for such choices.
        width: how many labels of a stage are kept behind each layer, those with the least bounds; None for all.
    """
    return _Sweeper(bounds, left, known_s, width).swept()


class _Sweeper:
    """A pass over all layers."""

    def __init__(self, bounds: Bounds, left: Left, known_s: float, width: int | None) -> None:
        self.pipeline, self.chain, self.bounds = bounds.pipeline, bounds.pipeline.chain, bounds
        self.width, self.dropped_s = width, np.inf
        self.columns = Columns(self.pipeline)
        self.left, self.known_s, self.limits_s = left, known_s, bounds.limits_s(known_s)

    def swept(self) -> Sweep:
        fronts: list[Front] = []
        ended: list[Ended] = []
        spent_s, bounds_s = np.empty((0, 0)), np.empty(0)
        for layer in range(self.chain.layers):
            front = self._begun(layer)
            if fronts:
                front = self._extended(layer, fronts[-1], spent_s, bounds_s).with_others(front)
            front = self._with_layer(layer, front)
            spent_s = self._spent_s(layer, front)
            bounds_s = self._bounds_s(layer, front, spent_s)
            kept = np.flatnonzero(np.isfinite(bounds_s))
            kept = kept[frontier(self._alike(front.picked(kept)), self.columns.compared(front.values[kept]))]
            kept = self._first(kept, front.stage[kept], bounds_s[kept], bounds_s[kept], 1)
            fronts.append(front.picked(kept))
            spent_s, bounds_s = spent_s[:, kept], bounds_s[kept]
            ended.append(self._ended(layer, fronts[-1], spent_s))
        step_s, rows = joined(self.bounds, Ended.of(ended), self.known_s)
        if rows is None:
            return Sweep(None, np.empty(0, dtype=int), np.inf, self.dropped_s)
        return Sweep(*_traced(fronts, rows), step_s, self.dropped_s)

    def _begun(self, layer: int) -> Front:
        """Labels of stages that begin with a layer, without it."""
        can = self.left.allowed[:, layer] & self.left.enterable[:, layer, None]
        for relaxation in self.bounds.relaxations:
            can &= np.isfinite(relaxation.opened[:, layer])
        stage, strategy = np.nonzero(can)
        values, columns = np.zeros((len(stage), self.columns.count)), self.columns
        values[:, columns.bytes] = self.pipeline.begin[stage, self.chain.kinds[layer], strategy]
        if columns.peak != columns.bytes:
            values[:, columns.peak] = -np.inf
        if self.chain.opening is not None:
            values[:, columns.missing] = self.chain.opening.capacity
        first = np.zeros_like(stage) if self.pipeline.stages == 1 else self.chain.place[strategy]
        return Front(values, stage, np.full_like(stage, layer), first, strategy, np.full_like(stage, -1))

    def _extended(self, layer: int, front: Front, spent_s: np.ndarray, bounds_s: np.ndarray) -> Front:
        """Labels that go on with a layer in their stage, without it."""
        move, columns = self.chain.moves[layer], self.columns
        onward_s = self._onward_s(layer, front, spent_s)
        parent, strategy = np.nonzero(np.isfinite(onward_s))
        onward_s = onward_s[parent, strategy]
        least_s = np.maximum(onward_s, bounds_s[parent])
        rows = self._first(np.arange(len(parent)), front.stage[parent], onward_s, least_s, _AHEAD)
        parent, strategy = parent[rows], strategy[rows]
        stage = front.stage[parent]
        going = Front(front.values[parent], stage, front.begin[parent], front.first[parent], strategy, parent)
        moved = (move, self.chain.place[front.strategy[parent]], self.chain.place[strategy])
        going.values[:, columns.own] += (self.chain.move_s[moved] / self.chain.phases)[:, None]
        if self.chain.moves_keep:
            kept, held = self.chain.move_kept[moved], self.pipeline.in_flight[stage]
            going.values[:, columns.bytes] += held * kept
            if columns.peak != columns.bytes:
                going.values[:, columns.peak] += (held - 1) * kept
        return going

    def _with_layer(self, layer: int, front: Front) -> Front:
        """The same labels with a layer added, those that fit and leave what is still needed."""
        columns, values, kind = self.columns, front.values, self.chain.kinds[layer]
        own, held = (kind, front.strategy), (front.stage, kind, front.strategy)
        values[:, columns.own] += self.chain.micro_s[kind][:, front.strategy].T
        values[:, columns.once] += self.chain.step_s[own]
        values[:, columns.bytes] += self.pipeline.full[held]
        if columns.peak != columns.bytes:
            running = values[:, columns.bytes] + self.chain.transient[own]
            values[:, columns.peak] = np.maximum(values[:, columns.peak] + self.pipeline.spent[held], running)
        if columns.update != columns.bytes:
            values[:, columns.update] += self.pipeline.updating[own]
        if self.chain.opening is not None:
            values[:, columns.once] += _opened(self.chain.opening, own, values[:, columns.missing])
        budget, at = self.pipeline.budget[front.stage], (front.stage, layer, front.strategy)
        fits = np.maximum(values[:, columns.peak], values[:, columns.update]) <= budget
        needed = (
            (columns.bytes, self.left.needed.bytes),
            (columns.peak, self.left.needed.peak),
            (columns.update, self.left.needed.update),
        )
        for column, least in needed:
            fits &= values[:, column] + least[at] <= budget * (1 + SLACK)
        return front.picked(np.flatnonzero(fits))

    def _spent_s(self, layer: int, front: Front) -> np.ndarray:
        """(relaxations, n) what labels have come to by each relaxation, with what comes before their stage."""
        columns, values = self.columns, front.values
        own_s = values[:, columns.own].sum(axis=1)
        found = np.empty((len(self.bounds.relaxations), len(values)))
        for row, relaxation in zip(found, self.bounds.relaxations, strict=True):
            used = columns.charged(values, relaxation.charge)
            spent_s = relaxation.micro * own_s + values[:, columns.once] / self.pipeline.stages
            spent_s += relaxation.opened[front.stage, front.begin, self.chain.first_of_place[front.first]]
            row[:] = spent_s + relaxation.prices[front.stage] * used - relaxation.paid_s[0]
            if relaxation.slow:
                row[:] += scaled(self.bounds.slowest_s(front.stage, front.begin, layer, own_s), relaxation.slow)
        return found

    def _bounds_s(self, layer: int, front: Front, spent_s: np.ndarray) -> np.ndarray:
        """What completions take at least; infinite for those that take more than what is known."""
        most_s = np.zeros(len(front.values))
        bytes_, place = front.values[:, self.columns.bytes], self.chain.place[front.strategy]
        left = self.pipeline.budget[front.stage] - bytes_
        every = zip(self.bounds.relaxations, self.limits_s, spent_s, self.left.filled, strict=True)
        for relaxation, limit_s, own_s, filled in every:
            bound_s = own_s + relaxation.completions[front.stage, layer, front.strategy]
            if filled is not None:
                used = self.columns.charged(front.values, relaxation.charge)
                unpriced_s = own_s - relaxation.prices[front.stage] * used + relaxation.paid_s[front.stage]
                bound_s = np.maximum(bound_s, unpriced_s + filled.ahead_s(front.stage, layer, place, left))
            most_s = np.maximum(most_s, np.where(bound_s <= limit_s, bound_s, np.inf))
        if (staying := self.bounds.staying) is not None:
            columns, values = self.columns, front.values
            seconds = self.pipeline.whole_s * values[:, columns.own].sum(axis=1) + values[:, columns.once]
            used = columns.charged(values, self.bounds.relaxations[0].charge)
            bound_s = staying.bounds_s(layer, front.strategy, seconds, used, spent_s[0])
            most_s = np.maximum(most_s, np.where(bound_s <= self.limits_s[0], bound_s, np.inf))
        return most_s

    def _onward_s(self, layer: int, front: Front, spent_s: np.ndarray) -> np.ndarray:
        """(n, S) what completions take at least of labels that go on with a layer in a strategy, its bytes at their
        price; infinite for those that take more than what is known."""
        most_s = np.where(self.left.allowed[front.stage, layer], 0.0, np.inf)
        for relaxation, limit_s, own_s in zip(self.bounds.relaxations, self.limits_s, spent_s, strict=True):
            onward_s = relaxation.onward_s(self.pipeline, layer)[front.stage, self.chain.place[front.strategy]]
            bound_s = own_s[:, None] + onward_s
            most_s = np.maximum(most_s, np.where(bound_s <= limit_s, bound_s, np.inf))
        moved_s = self.chain.move_s[self.chain.moves[layer], self.chain.place[front.strategy]]
        return np.where(np.isfinite(moved_s)[:, self.chain.place], most_s, np.inf)

    def _first(
        self, rows: np.ndarray, stage: np.ndarray, promised_s: np.ndarray, bounds_s: np.ndarray, times: int
    ) -> np.ndarray:
        """Of each stage so many times the width, those that promise most, in their order."""
        if self.width is None or len(rows) <= times * self.width:
            return rows
        order = np.lexsort((promised_s, stage))
        among = np.arange(len(order)) - np.searchsorted(stage[order], stage[order]) < times * self.width
        self.dropped_s = min(self.dropped_s, float(bounds_s[order[~among]].min(initial=np.inf)))
        return rows[np.sort(order[among])]

    def _alike(self, front: Front) -> np.ndarray:
        """The same number for labels of a stage that begin and end alike."""
        places = self.chain.places
        begun = (front.stage * self.chain.layers + front.begin) * places + front.first
        return begun * places + self.chain.place[front.strategy]

    def _ended(self, layer: int, front: Front, spent_s: np.ndarray) -> Ended:
        """Stages that end with a layer: those whose labels fit and may be of a choice that beats what is known."""
        columns, stage, place = self.columns, front.stage, self.chain.place[front.strategy]
        used = front.values[:, columns.peak] + self.pipeline.end[stage, self.chain.kinds[layer], place]
        can = used <= self.pipeline.budget[stage]
        for relaxation, limit_s, own_s in zip(self.bounds.relaxations, self.limits_s, spent_s, strict=True):
            bound_s = own_s + relaxation.closed[stage, layer, front.strategy]
            can &= np.isfinite(bound_s) & (bound_s <= limit_s)
        rows = np.flatnonzero(can)
        if self.pipeline.stages > 1:
            rows = rows[frontier(self._alike(front)[rows], self.columns.seconds(front.values[rows]))]
        values = front.values[rows]
        return Ended(
            stage=stage[rows],
            begin=front.begin[rows],
            end=np.full(len(rows), layer + 1),
            first=front.first[rows],
            last=place[rows],
            own=values[:, columns.own],
            once=values[:, columns.once],
            peak=values[:, columns.peak],
            row=rows,
        )


def _traced(fronts: list[Front], rows: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    """The strategies of all layers, and the borders, of stages that each end behind a layer, with a label there."""
    choice: list[int] = []
    for layer, row in reversed(rows):
        while row >= 0:
            layer -= 1
            choice.append(int(fronts[layer].strategy[row]))
            row = int(fronts[layer].parent[row])
    return np.array(choice[::-1]), np.array([0, *(end for end, _ in rows)])


def _opened(opening: Opening, own: tuple[int, np.ndarray], missing: np.ndarray) -> np.ndarray:
    """Seconds per step that layers take on top where so much is `missing`, which is less behind them."""
    amount = opening.amount[own]
    share = np.divide(np.minimum(amount, missing), amount, out=np.zeros_like(amount), where=amount > 0)
    starts = (missing == opening.capacity) & (amount > 0)
    missing -= np.minimum(amount, missing)
    return share * opening.toll_s[own] + starts * opening.start_s[own]
