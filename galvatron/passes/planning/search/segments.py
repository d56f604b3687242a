"""The inner dynamic program: the best strategies of a run of layers on one stage, for every trade of time and
memory."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from galvatron.costs.model import CostModel, Front, LayerCost
from galvatron.costs.objective import Setting, added_shared_bytes, is_last, layer_cost, messages_bytes
from galvatron.ir.strategy import Strategy
from galvatron.passes.planning.search.pareto import frontier

STEP_S, MISSING, BYTES, EXTRA, UPDATE = -5, -4, -3, -2, -1
"""The last columns of a label: seconds per step, bytes that are missing to the end of the first bucket (`Front`), bytes
that add up, what is in use beside these at the worst moment, and bytes during the update. Those before them are the
seconds per micro-batch, one column for each phase of the schedule."""


@dataclass(frozen=True)
class _Front:
    """Pareto-optimal labels of a run of layers that ends in one strategy, and where each came from."""

    values: np.ndarray
    from_strategy: np.ndarray
    from_row: np.ndarray


@dataclass(frozen=True)
class _Node:
    """A run of layers `begin..end` (inclusive): one front per first strategy (None where it does not matter) and
    last."""

    before: _Node | None
    fronts: dict[tuple[int | None, int], _Front]


@dataclass(frozen=True)
class Segment:
    """What a stage can be: seconds per micro-batch, by phase, and per step of strategies that fit the budget."""

    times: np.ndarray
    rows: np.ndarray


def _fastest_s(model: CostModel, setting: Setting, candidates: Sequence[Sequence[Strategy]]) -> list[float]:
    """The least seconds per micro-batch of each layer: on a stage with all layers that it shares parameters with."""
    return [
        min(layer_cost(model, setting, i, s).on_stage(0).micro_batch_s for s in options)
        for i, options in enumerate(candidates)
    ]


def bound_s(model: CostModel, setting: Setting, candidates: Sequence[Sequence[Strategy]]) -> float:
    """A step time that no plan beats: the layers add up, and the slowest stage takes at least the mean."""
    total_s = sum(_fastest_s(model, setting, candidates))
    return float(setting.pipeline_s(total_s, total_s / setting.pipeline_degree))


class Segments:
    """Fronts of every run of layers, shared between runs of the same classes.

    Args:
        candidates: the strategies of each layer.
        budget_bytes: of one device.
        resolution: see `galvatron.passes.planning.search.search_stages`.
        worst_s: a step time that is already reached: labels that cannot beat it are dropped.
    """

    def __init__(
        self,
        model: CostModel,
        setting: Setting,
        candidates: Sequence[Sequence[Strategy]],
        budget_bytes: float,
        resolution: float,
        worst_s: float,
    ) -> None:
        self.model, self.setting, self.candidates = model, setting, candidates
        self.budget_bytes, self.worst_s = budget_bytes - setting.fixed_bytes, worst_s
        self._kinds = model.kinds()
        self._nodes: dict[Hashable, _Node] = {}
        self._rows: dict[Hashable, np.ndarray] = {}
        self._settled: dict[Hashable, list[LayerCost]] = {}
        self._conversions: dict[Hashable, np.ndarray] = {}
        self.fastest_s = np.concatenate([[0.0], np.cumsum(_fastest_s(model, setting, candidates))])
        """Least seconds per micro-batch of the first i layers."""
        unit_s = bound_s(model, setting, candidates) * resolution
        self.phases = len(setting.order.phases)
        # The first column is exact; of the others seconds that the micro-batches multiply count as seconds of a step.
        later = [unit_s / setting.micro_batches] * (self.phases - 1)
        unit_bytes = budget_bytes * resolution
        self._units = np.array([0.0, *later, unit_s, 0.0, unit_bytes, 0.0, unit_bytes])

    def segments(self, stage: int, begin: int, end: int) -> dict[tuple[int | None, int], Segment]:
        """By first and last strategy, what stage `stage` can be if it runs layers `begin..end - 1`."""
        in_flight = self.setting.in_flight[stage]
        found: dict[tuple[int | None, int], Segment] = {}
        for (first, last), front in self._node(begin, end, in_flight).fronts.items():
            strategy = self.candidates[end - 1][last]
            entered = strategy if first is None else self.candidates[begin][first]
            sent_bytes = messages_bytes(self.model, self.setting, stage, begin, end, entered, strategy)
            rows = np.flatnonzero(front.values[:, BYTES] + front.values[:, EXTRA] + sent_bytes <= self.budget_bytes)
            times = front.values[rows][:, :MISSING]
            keep = frontier(times, self._units[:MISSING])
            if len(keep):
                found[first, last] = Segment(times[keep], rows[keep])
        return found

    def strategies(
        self, stage: int, begin: int, end: int, first: int | None, last: int, row: int
    ) -> tuple[Strategy, ...]:
        """The strategies behind one row of a segment's front."""
        chosen: list[Strategy] = []
        index, node = end - 1, self._node(begin, end, self.setting.in_flight[stage])
        while True:
            front = node.fronts[first, last]
            chosen.append(self.candidates[index][last])
            if node.before is None:
                return tuple(reversed(chosen))
            last, row = int(front.from_strategy[row]), int(front.from_row[row])
            index, node = index - 1, node.before

    def _key(self, index: int, begin: int) -> Hashable:
        """What a layer's costs depend on besides its strategy: its kind, and what it repeats of the stage."""
        repeated = (tuple(p.layer >= begin for p in self._cost(index, s).repeated) for s in self.candidates[index][:1])
        return (self._kinds[index], is_last(self.model, index), *repeated)

    def _node(self, begin: int, end: int, in_flight: int) -> _Node:
        anchored = begin == 0  # the first stage receives nothing, so its first strategy is nobody's business
        key = (in_flight, anchored, *(self._key(i, begin) for i in range(begin, end)))
        node = self._nodes.get(key)
        if node is None:
            before = self._node(begin, end - 1, in_flight) if end - begin > 1 else None
            node = self._extended(before, begin, end, in_flight)
            self._nodes[key] = node
        return node

    def _extended(self, before: _Node | None, begin: int, end: int, in_flight: int) -> _Node:
        index = end - 1
        rows = self._layer(index, begin, in_flight)
        fronts: dict[tuple[int | None, int], _Front] = {}
        if before is None:
            for last in range(len(rows)):
                cost, missing = self._costs(index, begin)[last], np.array([Front().missing_bytes])
                value = self._behind(rows[last][None].copy(), cost, missing)[0]
                value[BYTES] += in_flight * self._shared(index, None, last)
                self._add(fronts, None if begin == 0 else last, last, begin, end, [(value[None], last)])
            return _Node(None, fronts)
        conversions = self._conversion(index)
        firsts = dict.fromkeys(first for first, _ in before.fronts)
        for first in firsts:
            for last, cost in enumerate(self._costs(index, begin)):
                parts: list[tuple[np.ndarray, int]] = []
                for (other, previous), front in before.fronts.items():
                    if other == first:
                        values = self._behind(front.values + rows[last], cost, front.values[:, MISSING])
                        shared_bytes = self._shared(index, previous, last)
                        late_bytes = self.setting.late_bytes(cost, in_flight)
                        leaving_bytes = cost.saved_bytes - late_bytes + shared_bytes
                        earlier = front.values[:, EXTRA] - leaving_bytes
                        values[:, EXTRA] = np.maximum(earlier, rows[last][EXTRA])
                        values[:, : self.phases] += conversions[previous, last] / self.phases
                        values[:, BYTES] += in_flight * shared_bytes
                        parts.append((values, previous))
                self._add(fronts, first, last, begin, end, parts)
        return _Node(before, fronts)

    def _add(
        self,
        fronts: dict[tuple[int | None, int], _Front],
        first: int | None,
        last: int,
        begin: int,
        end: int,
        parts: list[tuple[np.ndarray, int]],
    ) -> None:
        """Keeps the labels that fit, may still beat `worst_s`, and are not dominated."""
        if not parts:
            return
        values = np.concatenate([part for part, _ in parts])
        strategies = np.concatenate([np.full(len(part), previous) for part, previous in parts])
        rows = np.concatenate([np.arange(len(part)) for part, _ in parts])
        # One stage takes this long in each micro-batch, and the others at least their share once.
        others_s = self.fastest_s[-1] - (self.fastest_s[end] - self.fastest_s[begin])
        own_s = values[:, : self.phases].sum(axis=1)
        possible = np.isfinite(own_s)
        values, strategies, rows, own_s = values[possible], strategies[possible], rows[possible], own_s[possible]
        least_s = self.setting.pipeline_s(own_s + others_s, own_s) + values[:, STEP_S]
        most_bytes = np.maximum(values[:, BYTES] + values[:, EXTRA], values[:, UPDATE])
        alive = np.flatnonzero((most_bytes <= self.budget_bytes) & (least_s < self.worst_s))
        values = values[alive]
        compared = values
        if self.setting.pipeline_degree == 1:  # only the sum matters
            compared = values.copy()
            compared[:, :MISSING] = 0.0
            compared[:, 0] = self.setting.micro_batches * own_s[alive] + values[:, STEP_S]
        keep = frontier(compared, self._units)
        if len(keep):
            fronts[first, last] = _Front(values[keep], strategies[alive][keep], rows[alive][keep])

    def _layer(self, index: int, begin: int, in_flight: int) -> np.ndarray:
        """One label per strategy of a layer, without what it shares with its neighbours."""
        key = (in_flight, self._key(index, begin))
        if key not in self._rows:
            order = self.setting.order
            self._rows[key] = np.array(
                [
                    [
                        *c.times.phases(order),
                        c.once_s,
                        0.0,
                        c.state_bytes - self.setting.late_bytes(c, in_flight) + in_flight * c.saved_bytes,
                        c.extra_bytes,
                        c.state_bytes + c.update_bytes,
                    ]
                    for c in self._costs(index, begin)
                ]
            )
        return self._rows[key]

    def _costs(self, index: int, begin: int) -> list[LayerCost]:
        """What a layer costs under each of its strategies."""
        key = self._key(index, begin)
        if key not in self._settled:
            costs = [self._cost(index, strategy).on_stage(begin) for strategy in self.candidates[index]]
            self._settled[key] = costs
        return self._settled[key]

    def _behind(self, values: np.ndarray, cost: LayerCost, missing: np.ndarray) -> np.ndarray:
        """The same labels with what of a layer is exposed once per step, where so much of the first bucket was left."""
        front = Front(missing)
        values[:, STEP_S] += cost.exposed(front).seconds
        values[:, MISSING] = front.after(cost.bucket_bytes).missing_bytes
        return values

    def _cost(self, index: int, strategy: Strategy) -> LayerCost:
        return layer_cost(self.model, self.setting, index, strategy)

    def _shared(self, index: int, previous: int | None, last: int) -> float:
        before = None if previous is None else self.candidates[index - 1][previous]
        strategy = self.candidates[index][last]
        size, ties = self.setting.micro_batch, self.setting.ties
        return added_shared_bytes(self.model, before, strategy, size, ties)

    def _conversion(self, index: int) -> np.ndarray:
        """Seconds of converting between each strategy of layer `index - 1` and each of layer `index`."""
        key = (self._kinds[index - 1], self._kinds[index])
        if key not in self._conversions:
            size = self.setting.micro_batch
            self._conversions[key] = np.array(
                [
                    [self.model.conversion_s(index, before, after, size) for after in self.candidates[index]]
                    for before in self.candidates[index - 1]
                ]
            )
        return self._conversions[key]
