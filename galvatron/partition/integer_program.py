"""The cheapest labels by an integer program.

Binary variables choose the labels; flow variables carry each value from the state it is produced in to every state that
some reader needs, each conversion paid once however many readers share it. They are formulated per produced state and
reader, which leaves next to no gap between the program and its linear relaxation: HiGHS solves it exactly, mostly
without branching.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from galvatron.partition.choosing import Delivery, End, Problem, Quote
from galvatron.partition.modes import AxisState

_Prices = Mapping[tuple[AxisState, AxisState], float]
"""Seconds to convert one value from a state to another."""

_Columns = dict[AxisState, list[int]]
"""The columns of a choice by the state that its labels mean for a value."""


def labels_by_program(problem: Problem, quote: Quote) -> tuple[list[int], float]:
    """The cheapest label of every choice, and what they cost together in seconds (infinite where nothing
    is possible)."""
    program = _Program()
    chosen: list[list[int]] = []
    for prices in quote.choices:
        columns = [program.column(price, integral=len(prices) > 1) for price in prices]
        program.row([(c, 1.0) for c in columns], 1.0, 1.0)
        chosen.append(columns)

    def by_state(end: End) -> _Columns:
        found: _Columns = defaultdict(list)
        for column, state in zip(chosen[end.choice], end.states, strict=True):
            found[state].append(column)
        return found

    for delivery, prices in zip(problem.deliveries, quote.deliveries, strict=True):
        price = dict(zip(delivery.steps.pairs, prices, strict=True))
        _deliver(program, by_state(delivery.made), [by_state(end) for end in delivery.read], delivery, price)
    x, objective = program.solve()
    return [int(np.argmax([x[c] for c in columns])) for columns in chosen], objective


@dataclass
class _Program:
    """An integer program under construction, minimised: columns with a cost, rows `low <= sum <= high`."""

    cost: list[float] = field(default_factory=list)
    integral: list[int] = field(default_factory=list)
    rows: list[tuple[list[int], list[float], float, float]] = field(default_factory=list)

    def column(self, cost: float, *, integral: bool) -> int:
        self.cost.append(cost)
        self.integral.append(int(integral))
        return len(self.cost) - 1

    def row(self, terms: list[tuple[int, float]], low: float, high: float) -> None:
        self.rows.append(([c for c, _ in terms], [v for _, v in terms], low, high))

    def solve(self) -> tuple[np.ndarray, float]:
        from scipy.optimize import Bounds, LinearConstraint, milp  # long to load, and most graphs need no program
        from scipy.sparse import coo_array

        scale = 1.0 / max(max(self.cost, default=1.0), 1e-12)
        row_index = np.concatenate([np.full(len(c), i) for i, (c, _, _, _) in enumerate(self.rows)])
        columns = np.concatenate([np.array(c, dtype=int) for c, _, _, _ in self.rows])
        values = np.concatenate([np.array(v) for _, v, _, _ in self.rows])
        matrix = coo_array((values, (row_index, columns)), shape=(len(self.rows), len(self.cost))).tocsr()
        low, high = np.array([r[2] for r in self.rows]), np.array([r[3] for r in self.rows])
        result = milp(
            np.array(self.cost) * scale * 1e3,
            integrality=np.array(self.integral),
            bounds=Bounds(0, 1),
            constraints=LinearConstraint(matrix, low, high),  # type: ignore[arg-type]  # arrays, says its documentation
            options={"mip_rel_gap": 1e-9},
        )
        if result.x is None:
            return np.zeros(len(self.cost)), np.inf
        return result.x, float(np.dot(self.cost, result.x))


def _deliver(
    program: _Program,
    produced: _Columns,
    consumers: list[_Columns],
    delivery: Delivery,
    price: _Prices,
) -> None:
    """Every consumer of a value gets it in the state it needs: the produced one, or a copy converted from it.

    Per consumer, an amount (0 or 1) goes from the state that is produced to the state that is needed.
    """
    nodes = delivery.stops
    arriving: list[_Columns] = [defaultdict(list) for _ in consumers]
    for source, columns in produced.items():
        distances = _distances(source, nodes, price)
        amounts: list[dict[AxisState, int]] = []
        for need, arrivals in zip(consumers, arriving, strict=True):
            # A consumer with no other beside it pays for its own conversions; others share theirs.
            alone = len(consumers) == 1
            amount = {t: program.column(distances[t] if alone else 0.0, integral=False) for t in need if t in distances}
            amounts.append(amount)
            for target, column in amount.items():
                arrivals[target].append(column)
            program.row([*((c, 1.0) for c in amount.values()), *((c, -1.0) for c in columns)], 0.0, 0.0)
        if len(consumers) > 1:
            _share_conversions(program, source, distances, amounts, price)
    for need, arrivals in zip(consumers, arriving, strict=True):
        for state, columns in need.items():
            program.row([*((c, 1.0) for c in arrivals[state]), *((c, -1.0) for c in columns)], 0.0, 0.0)


def _share_conversions(
    program: _Program,
    source: AxisState,
    distances: Mapping[AxisState, float],
    amounts: list[dict[AxisState, int]],
    price: _Prices,
) -> None:
    """What arrives from `source` flows over conversions that are bought once for all consumers."""
    targets = list(dict.fromkeys(t for amount in amounts for t in amount if t != source))
    if len(targets) <= 1:
        for target in targets:
            bought = program.column(distances[target], integral=False)
            for amount in amounts:
                if target in amount:
                    program.row([(amount[target], 1.0), (bought, -1.0)], -np.inf, 0.0)
        return
    # A copy of a copy is worth while only where it is cheaper than a copy of the source.
    arcs = [
        (a, b)
        for a in distances
        for b in distances
        if b not in (a, source) and price[a, b] < (price[source, b] if a != source else np.inf)
    ]
    bought = {arc: program.column(price[arc], integral=False) for arc in arcs}
    for amount in amounts:
        if not amount.keys() - {source}:
            continue
        flow = {arc: program.column(0.0, integral=False) for arc in arcs}
        for arc in arcs:
            program.row([(flow[arc], 1.0), (bought[arc], -1.0)], -np.inf, 0.0)
        for node in distances:
            terms = [(flow[a, b], 1.0 if b == node else -1.0) for a, b in arcs if node in (a, b)]
            if node in amount:
                terms.append((amount[node], -1.0))
            if node != source and terms:
                program.row(terms, 0.0, 0.0)


def _distances(source: AxisState, nodes: tuple[AxisState, ...], price: _Prices) -> dict[AxisState, float]:
    """The cheapest way from `source` to each state that can be reached, through any of `nodes`."""
    distances = {source: 0.0}
    changed = [source]
    while changed:
        a = changed.pop(0)
        for b in nodes:
            if b != a and distances[a] + price[a, b] < distances.get(b, np.inf):
                distances[b] = distances[a] + price[a, b]
                changed.append(b)
    return distances
