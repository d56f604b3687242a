"""The solver: one mode per op of a layer class, at the least communication plus compute time, as an integer program.

For one mesh axis, binary variables choose a mode per op and a state per parameter; flow variables carry each value from
the state it is produced in to every state that some consumer needs, each conversion paid once however many consumers
share it. A copy may be made from another copy (`S → R'` serves consumers of `R'`, and from it `R` is free), so the
conversions of one value are a cheapest arborescence. They are formulated per produced state and consumer, which leaves
next to no gap between the program and its linear relaxation: HiGHS solves it exactly, mostly without branching.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, partial

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from galvatron.errors import GalvatronError
from galvatron.ir.graph import Graph
from galvatron.ir.layout import REPLICATE
from galvatron.partition.modes import AxisState, Mode

_Price = Callable[[AxisState, AxisState], float]
"""Seconds to convert one value from a state to another."""


@dataclass(frozen=True)
class Boundary:
    """What surrounds a class on one axis: given input states, wanted output states, and the states each piece of state
    (parameter or buffer) may be kept in."""

    inputs: Mapping[str, AxisState]
    outputs: Mapping[str, AxisState]
    state: Mapping[str, tuple[AxisState, ...]]


@dataclass(frozen=True)
class Costs:
    """Prices in seconds: of an op in a mode, of converting a value between states, of keeping a piece of state."""

    op_s: Callable[[int, Mode], float]
    conversion_s: Callable[[str, AxisState, AxisState], float]
    """Infinite where no single conversion exists."""
    state_s: Callable[[str, AxisState], float]


@dataclass(frozen=True)
class Solution:
    """The chosen mode per op, the state of each parameter and buffer, and the objective in seconds."""

    modes: tuple[Mode, ...]
    state: dict[str, AxisState]
    objective_s: float


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
            raise GalvatronError(f"the sharding of a layer class has no solution: {result.message}")
        return result.x, float(np.dot(self.cost, result.x))


def solve(graph: Graph, modes: list[tuple[Mode, ...]], boundary: Boundary, costs: Costs) -> Solution:
    """The cheapest choice of modes under a boundary condition.

    Raises:
        GalvatronError: no choice satisfies the boundary.
    """
    program = _Program()
    chosen: list[list[int]] = []
    produced: dict[str, dict[AxisState, list[int]]] = defaultdict(lambda: defaultdict(list))
    needs: dict[str, list[dict[AxisState, list[int]]]] = defaultdict(list)
    fixed = program.column(0.0, integral=False)
    program.row([(fixed, 1.0)], 1.0, 1.0)

    for value, state in boundary.inputs.items():
        produced[value][state].append(fixed)
    state_columns: dict[str, dict[AxisState, int]] = {}
    for value, allowed in boundary.state.items():
        state_columns[value] = {s: program.column(costs.state_s(value, s), integral=True) for s in allowed}
        program.row([(c, 1.0) for c in state_columns[value].values()], 1.0, 1.0)
        for state, column in state_columns[value].items():
            produced[value][state].append(column)
    for index, op in enumerate(graph.ops):
        columns = [program.column(costs.op_s(index, mode), integral=True) for mode in modes[index]]
        program.row([(c, 1.0) for c in columns], 1.0, 1.0)
        chosen.append(columns)
        for position, name in enumerate(op.operands):
            need: dict[AxisState, list[int]] = defaultdict(list)
            for column, mode in zip(columns, modes[index], strict=True):
                need[mode.operands[position]].append(column)
            needs[name].append(need)
        for position, value in enumerate(op.results):
            for column, mode in zip(columns, modes[index], strict=True):
                produced[value.name][mode.results[position]].append(column)
    for name in graph.outputs:
        if name in boundary.outputs:
            needs[name].append({boundary.outputs[name]: [fixed]})

    for value, consumers in needs.items():
        _deliver(program, produced[value], consumers, cache(partial(costs.conversion_s, value)))

    x, objective = program.solve()
    picked = tuple(ms[int(np.argmax([x[c] for c in cs]))] for ms, cs in zip(modes, chosen, strict=True))
    kept = {v: max(columns, key=lambda s: x[columns[s]]) for v, columns in state_columns.items()}
    return Solution(picked, kept, objective)


def _deliver(
    program: _Program,
    produced: Mapping[AxisState, list[int]],
    consumers: list[dict[AxisState, list[int]]],
    price: _Price,
) -> None:
    """Every consumer of a value gets it in the state it needs: the produced one, or a copy converted from it.

    Per consumer, an amount (0 or 1) goes from the state that is produced to the state that is needed.
    """
    nodes = list(dict.fromkeys([*(state for need in consumers for state in need), REPLICATE]))
    arriving: list[dict[AxisState, list[int]]] = [defaultdict(list) for _ in consumers]
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
    price: _Price,
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
        if b not in (a, source) and price(a, b) < (price(source, b) if a != source else np.inf)
    ]
    bought = {arc: program.column(price(*arc), integral=False) for arc in arcs}
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


def _distances(source: AxisState, nodes: list[AxisState], price: _Price) -> dict[AxisState, float]:
    """The cheapest way from `source` to each state that can be reached, through any of `nodes`."""
    distances = {source: 0.0}
    changed = [source]
    while changed:
        a = changed.pop(0)
        for b in nodes:
            if b != a and distances[a] + price(a, b) < distances.get(b, np.inf):
                distances[b] = distances[a] + price(a, b)
                changed.append(b)
    return distances
