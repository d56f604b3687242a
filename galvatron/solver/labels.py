"""The dynamic program: labels of the first layers, extended by one layer at a time.

A label is what a choice for the first layers has come to. It is dropped where it does not fit, where no completion
takes less than what is known already, and where another one that ends alike is worse in nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from galvatron.solver.bounds import Bounds
from galvatron.solver.charges import Charge
from galvatron.solver.pareto import frontier
from galvatron.solver.relaxation import scaled
from galvatron.solver.tables import Opening, Pipeline


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

    Of the stage that is not finished: `own`, seconds per micro-batch of each phase; `once`, per step; `bytes` while its
    last layer runs; `peak`, the most while any of its layers runs, with what is behind it, and `update`, bytes in the
    update, both of them `bytes` where they cannot be more; `missing`, bytes up to the end of the opening. Of those
    before it: `done` and `done_once`, sums of seconds per micro-batch and per step; `slowest` by phase, and
    `slowest_once`, the most of them. Of all stages: `received`, the sum of seconds of receiving, which `own` and `done`
    have too.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        chain, phases = pipeline.chain, pipeline.chain.phases
        self.own, self.slowest = slice(0, phases), slice(phases, 2 * phases)
        self.once, self.bytes, self.peak, self.update, self.missing = range(2 * phases, 2 * phases + 5)
        self.done, self.done_once, self.slowest_once, self.received = range(2 * phases + 5, 2 * phases + 9)
        self.count = 2 * phases + 9
        if not chain.transient.any() and (pipeline.full >= pipeline.spent).all():
            self.peak = self.bytes
        if (pipeline.updating <= pipeline.full).all():
            self.update = self.bytes

    def charged(self, values: np.ndarray, charge: Charge, layer: int) -> np.ndarray:
        """The bytes of labels that are charged up to a layer, or more."""
        if charge.passed is None:
            return values[:, self.update]
        # Of a moment that is over, the most so far is no less than what was in use.
        passed = charge.passed[layer]
        if not passed or self.peak == self.bytes:
            return values[:, self.bytes]
        return passed * values[:, self.peak] + (1 - passed) * values[:, self.bytes]

    def compared(self, pipeline: Pipeline) -> list[int]:
        """The columns in which one label can be worse than another, beside the sum of their seconds."""
        found = list(dict.fromkeys((self.bytes, self.peak, self.update)))
        if pipeline.stages > 1:
            every = range(self.count)
            found += [*every[self.own], *every[self.slowest], self.slowest_once, self.once]
        if pipeline.chain.opening is not None:
            found.append(self.missing)
        return found


@dataclass(frozen=True, eq=False)
class Front:
    """Labels behind one layer: (n, columns) figures, (n,) stages and strategies, and (n,) labels that they extend.

    They are in the order of their choices.
    """

    values: np.ndarray
    stage: np.ndarray
    strategy: np.ndarray
    parent: np.ndarray

    def picked(self, rows: np.ndarray) -> Front:
        """Some of them."""
        return Front(self.values[rows], self.stage[rows], self.strategy[rows], self.parent[rows])


def sweep(bounds: Bounds, known_s: float, width: int | None) -> Sweep:
    """The best choice that takes no more than `known_s`.

    Args:
        width: how many labels are kept behind each layer, those with the least bounds; None for all.
    """
    return _Sweeper(bounds, known_s).swept(width)


class _Sweeper:
    """A pass over all layers."""

    def __init__(self, bounds: Bounds, known_s: float) -> None:
        self.pipeline, self.chain, self.bounds = bounds.pipeline, bounds.pipeline.chain, bounds
        self.columns = Columns(self.pipeline)
        self.limits_s = bounds.limits_s(known_s)
        self.allowed, self.enterable = bounds.allowed(self.limits_s)
        self.compared = self.columns.compared(self.pipeline)

    def swept(self, width: int | None) -> Sweep:
        fronts: list[Front] = []
        spent_s, dropped_s = np.empty((0, 0)), np.inf
        for layer in range(self.chain.layers):
            front = self._extended(layer, fronts[-1], spent_s) if fronts else self._begun()
            spent_s = self._spent_s(layer, front)
            bounds_s = self._bounds_s(layer, front, spent_s)
            kept = np.flatnonzero(np.isfinite(bounds_s))
            groups = front.stage[kept] * self.chain.places + self.chain.place[front.strategy[kept]]
            kept = kept[frontier(groups, self._figures(front.values[kept]))]
            if width is not None and len(kept) > width:
                order = np.argsort(bounds_s[kept], kind="stable")
                dropped_s = min(dropped_s, float(bounds_s[kept[order[width]]]))
                kept = np.sort(kept[order[:width]])
            fronts.append(front.picked(kept))
            spent_s = spent_s[:, kept]
        return self._best(fronts, dropped_s)

    def _begun(self) -> Front:
        """Labels of the first layer."""
        strategy = np.flatnonzero(self.allowed[0, 0])
        values = np.zeros((len(strategy), self.columns.count))
        stage = np.zeros_like(strategy)
        return self._with_layer(0, self._begin_stage(0, Front(values, stage, strategy, stage - 1)))

    def _extended(self, layer: int, front: Front, spent_s: np.ndarray) -> Front:
        """Labels that go on with a layer in their stage, or begin the next one with it."""
        move, columns = self.chain.moves[layer], self.columns
        parent, strategy = np.nonzero(self._promising(layer, front, spent_s))
        going = Front(front.values[parent], front.stage[parent], strategy, parent)
        moved = (move, self.chain.place[front.strategy[parent]], self.chain.place[strategy])
        going.values[:, columns.own] += (self.chain.move_s[moved] / self.chain.phases)[:, None]
        if self.chain.moves_keep:
            kept, held = self.chain.move_kept[moved], self.pipeline.in_flight[going.stage]
            going.values[:, columns.bytes] += held * kept
            if columns.peak != columns.bytes:
                going.values[:, columns.peak] += (held - 1) * kept
        if self.pipeline.stages > 1:
            going = _merged(going, self._entered(layer, front))
        return self._with_layer(layer, going)

    def _entered(self, layer: int, front: Front) -> Front:
        """Labels that begin a stage with a layer."""
        columns, last, place = self.columns, self.pipeline.stages - 1, self.chain.place
        enter_s, receive_s = (t[self.chain.moves[layer]] for t in (self.pipeline.enter_s, self.pipeline.receive_s))
        behind = np.minimum(front.stage + 1, last)
        can = (front.stage < last) & self.enterable[behind, layer] & self._fits(layer - 1, front)
        open_ = np.isfinite(enter_s + receive_s)[place[front.strategy]][:, place]
        parent, strategy = np.nonzero(can[:, None] & self.allowed[behind, layer] & open_)
        before = front.values[parent]
        values = np.zeros_like(before)
        values[:, columns.done] = before[:, columns.done] + before[:, columns.own].sum(axis=1)
        values[:, columns.done_once] = before[:, columns.done_once] + before[:, columns.once]
        values[:, columns.slowest] = np.maximum(before[:, columns.slowest], before[:, columns.own])
        values[:, columns.slowest_once] = np.maximum(before[:, columns.slowest_once], before[:, columns.once])
        moved = (place[front.strategy[parent]], place[strategy])
        values[:, columns.own] = ((enter_s[moved] + receive_s[moved]) / self.chain.phases)[:, None]
        values[:, columns.received] = before[:, columns.received] + receive_s[moved]
        return self._begin_stage(layer, Front(values, behind[parent], strategy, parent))

    def _begin_stage(self, layer: int, front: Front) -> Front:
        begin = self.pipeline.begin[front.stage, self.chain.kinds[layer], front.strategy]
        if self.columns.peak != self.columns.bytes:
            front.values[:, self.columns.peak] = -np.inf
        front.values[:, self.columns.bytes] = begin
        if self.chain.opening is not None:
            front.values[:, self.columns.missing] = self.chain.opening.capacity
        return front

    def _with_layer(self, layer: int, front: Front) -> Front:
        """The same labels with a layer added, those that fit."""
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
        most = np.maximum(values[:, columns.peak], values[:, columns.update])
        return front.picked(np.flatnonzero(most <= self.pipeline.budget[front.stage]))

    def _fits(self, layer: int, front: Front) -> np.ndarray:
        """Whether a stage can end with a layer."""
        ended = front.values[:, self.columns.peak]
        ended = ended + self.pipeline.end[front.stage, self.chain.kinds[layer], self.chain.place[front.strategy]]
        return ended <= self.pipeline.budget[front.stage]

    def _spent_s(self, layer: int, front: Front) -> np.ndarray:
        """(relaxations, n) what labels have come to by each relaxation."""
        columns, values = self.columns, front.values
        own_s = values[:, columns.own].sum(axis=1)
        micro_s = values[:, columns.done] + own_s
        once_s = (values[:, columns.done_once] + values[:, columns.once]) / self.pipeline.stages
        slowest_s = np.zeros(1)
        if self.pipeline.stages > 1:
            slowest_s = np.maximum(values[:, columns.slowest], values[:, columns.own]).sum(axis=1)
            slowest_s = np.maximum(slowest_s, self.bounds.slowest_s(front.stage, layer, own_s))
        found = np.empty((len(self.bounds.relaxations), len(values)))
        for row, relaxation in zip(found, self.bounds.relaxations, strict=True):
            used = columns.charged(values, relaxation.charge, layer)
            received_s = values[:, columns.received]
            spent_s = relaxation.micro * (micro_s - received_s) + relaxation.wait * received_s
            spent_s += scaled(slowest_s, relaxation.slow) + once_s
            row[:] = spent_s + relaxation.prices[front.stage] * used - relaxation.paid_s[front.stage]
        return found

    def _bounds_s(self, layer: int, front: Front, spent_s: np.ndarray) -> np.ndarray:
        """What completions take at least; infinite for those that take more than what is known."""
        most_s = np.zeros(len(front.values))
        for relaxation, limit_s, own_s in zip(self.bounds.relaxations, self.limits_s, spent_s, strict=True):
            bound_s = own_s + relaxation.completions[front.stage, layer, front.strategy]
            most_s = np.maximum(most_s, np.where(bound_s <= limit_s, bound_s, np.inf))
        if (staying := self.bounds.staying) is not None:
            columns, values = self.columns, front.values
            seconds = self.pipeline.whole_s * values[:, columns.own].sum(axis=1) + values[:, columns.once]
            used = columns.charged(values, self.bounds.relaxations[0].charge, layer)
            bound_s = staying.bounds_s(layer, front.strategy, seconds, used, spent_s[0])
            most_s = np.maximum(most_s, np.where(bound_s <= self.limits_s[0], bound_s, np.inf))
        return most_s

    def _promising(self, layer: int, front: Front, spent_s: np.ndarray) -> np.ndarray:
        """(n, S) whether labels can go on with a layer in a strategy and may still be better than what is known."""
        promising = self.allowed[front.stage, layer]
        for relaxation, limit_s, own_s in zip(self.bounds.relaxations, self.limits_s, spent_s, strict=True):
            onward_s = relaxation.onward_s(self.pipeline, layer)[front.stage, self.chain.place[front.strategy]]
            promising = promising & (onward_s <= limit_s - own_s[:, None])
        moved_s = self.chain.move_s[self.chain.moves[layer], self.chain.place[front.strategy]]
        return promising & np.isfinite(moved_s)[:, self.chain.place]

    def _figures(self, values: np.ndarray) -> np.ndarray:
        """What of labels is compared: less is better."""
        columns = self.columns
        own_s = values[:, columns.own].sum(axis=1)
        if self.pipeline.stages > 1:
            cost_s = _through_s(self.pipeline, values[:, columns.done] + own_s, values[:, columns.received])
        else:
            cost_s = [self.pipeline.whole_s * own_s + values[:, columns.once]]
        return np.column_stack([*cost_s, values[:, self.compared]])

    def _best(self, fronts: list[Front], dropped_s: float) -> Sweep:
        columns, front = self.columns, fronts[-1]
        front = front.picked(np.flatnonzero(self._fits(self.chain.layers - 1, front)))
        if not len(front.values):
            return Sweep(None, np.empty(0, dtype=int), np.inf, dropped_s)
        step_s = self._step_s(front.values)
        row = int(np.lexsort((front.values[:, columns.peak], step_s))[0])
        best_s, choice, stage = float(step_s[row]), [], []
        for earlier in [front, *fronts[-2::-1]]:
            choice.append(int(earlier.strategy[row]))
            stage.append(int(earlier.stage[row]))
            row = int(earlier.parent[row])
        borders = np.searchsorted(stage[::-1], np.arange(self.pipeline.stages + 1))
        return Sweep(np.array(choice[::-1]), borders, best_s, dropped_s)

    def _step_s(self, values: np.ndarray) -> np.ndarray:
        """Step times of labels of all layers."""
        columns = self.columns
        total_s = values[:, columns.done] + values[:, columns.own].sum(axis=1)
        slowest_s = np.maximum(values[:, columns.slowest], values[:, columns.own]).sum(axis=1)
        once_s = np.maximum(values[:, columns.slowest_once], values[:, columns.once])
        through_s = _through_s(self.pipeline, total_s, values[:, columns.received])
        slows = [slow for _, slow in self.pipeline.lines]
        return np.max([t + slow * slowest_s for t, slow in zip(through_s, slows, strict=True)], axis=0) + once_s


def _through_s(pipeline: Pipeline, total_s: np.ndarray, received_s: np.ndarray) -> list[np.ndarray]:
    """By each line, what the sums over all stages come to, of all seconds and of those of receiving."""
    return [whole * (total_s - received_s) + pipeline.wait * received_s for whole, _ in pipeline.lines]


def _opened(opening: Opening, own: tuple[int, np.ndarray], missing: np.ndarray) -> np.ndarray:
    """Seconds per step that layers take on top where so much is `missing`, which is less behind them."""
    amount = opening.amount[own]
    share = np.divide(np.minimum(amount, missing), amount, out=np.zeros_like(amount), where=amount > 0)
    starts = (missing == opening.capacity) & (amount > 0)
    missing -= np.minimum(amount, missing)
    return share * opening.toll_s[own] + starts * opening.start_s[own]


def _merged(one: Front, other: Front) -> Front:
    """Both, in the order of the labels that they extend; those that go on with their stage come first."""
    order = np.argsort(np.concatenate([one.parent, other.parent]), kind="stable")
    both = (np.concatenate(pair) for pair in zip(_parts(one), _parts(other), strict=True))
    return Front(*both).picked(order)


def _parts(front: Front) -> tuple[np.ndarray, ...]:
    return front.values, front.stage, front.strategy, front.parent
