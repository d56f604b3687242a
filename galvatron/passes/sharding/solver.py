"""The solver: one mode per op of a layer class, at the least communication plus compute time, as an integer program.

For one mesh axis, binary variables choose a mode per op and a state per parameter; flow variables carry each value from the
state it is produced in to every state that some consumer needs, each conversion paid once however many consumers share it.
Conversions may pass through `R` (one all-reduce serves consumers of `R` and of `R'`). HiGHS solves the program exactly.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from galvatron.errors import GalvatronError
from galvatron.ir.graph import Graph
from galvatron.ir.layout import REPLICATE
from galvatron.passes.sharding.modes import Mode, State


@dataclass(frozen=True)
class Boundary:
    """What surrounds a class on one axis: given input states, wanted output states, and the states each piece of state
    (parameter or buffer) may be kept in."""

    inputs: Mapping[str, State]
    outputs: Mapping[str, State]
    state: Mapping[str, tuple[State, ...]]


@dataclass(frozen=True)
class Costs:
    """Prices in seconds: of an op's work (whole), of converting a value between states, of keeping a piece of state."""

    op_s: Callable[[int], float]
    conversion_s: Callable[[str, State, State], float]
    """Infinite where no conversion exists."""
    state_s: Callable[[str, State], float]


@dataclass(frozen=True)
class Solution:
    """The chosen mode per op, the state of each parameter and buffer, and the objective in seconds."""

    modes: tuple[Mode, ...]
    state: dict[str, State]
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
        result = milp(
            np.array(self.cost) * scale * 1e3,
            integrality=np.array(self.integral),
            bounds=Bounds(0, 1),
            constraints=LinearConstraint(
                matrix, np.array([r[2] for r in self.rows]), np.array([r[3] for r in self.rows])
            ),
            options={"mip_rel_gap": 1e-6},
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
    produced: dict[str, dict[State, list[int]]] = defaultdict(lambda: defaultdict(list))
    needs: dict[str, list[dict[State, list[int]]]] = defaultdict(list)
    fixed = program.column(0.0, integral=False)
    program.row([(fixed, 1.0)], 1.0, 1.0)

    for value, state in boundary.inputs.items():
        produced[value][state].append(fixed)
    state_columns: dict[str, dict[State, int]] = {}
    for value, allowed in boundary.state.items():
        state_columns[value] = {s: program.column(costs.state_s(value, s), integral=True) for s in allowed}
        program.row([(c, 1.0) for c in state_columns[value].values()], 1.0, 1.0)
        for state, column in state_columns[value].items():
            produced[value][state].append(column)
    for index, op in enumerate(graph.ops):
        work_s = costs.op_s(index)
        columns = [program.column(work_s * mode.share, integral=True) for mode in modes[index]]
        program.row([(c, 1.0) for c in columns], 1.0, 1.0)
        chosen.append(columns)
        for position, name in enumerate(op.operands):
            need: dict[State, list[int]] = defaultdict(list)
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
        _flow(program, value, produced[value], consumers, costs)

    x, objective = program.solve()
    picked = tuple(ms[int(np.argmax([x[c] for c in cs]))] for ms, cs in zip(modes, chosen, strict=True))
    kept = {v: max(columns, key=lambda s: x[columns[s]]) for v, columns in state_columns.items()}
    return Solution(picked, kept, objective)


def _flow(
    program: _Program,
    value: str,
    produced: Mapping[State, list[int]],
    consumers: list[dict[State, list[int]]],
    costs: Costs,
) -> None:
    """Every needed state of `value` is the produced one or converted from it, directly or through `R`."""
    wanted = list(dict.fromkeys(s for need in consumers for s in need))
    into: dict[State, list[int]] = defaultdict(list)
    targets = [*wanted] if REPLICATE in wanted else [*wanted, REPLICATE]
    out_of: dict[State, list[tuple[State, int]]] = defaultdict(list)
    for source in produced:
        for target in targets:
            if source == target:
                continue
            price = costs.conversion_s(value, source, target)
            if price == float("inf"):
                continue
            column = program.column(price, integral=False)
            into[target].append(column)
            out_of[source].append((target, column))
    # A direct conversion needs its source produced.
    for source, columns in out_of.items():
        for _, column in columns:
            program.row([(column, 1.0), *((p, -1.0) for p in produced[source])], -np.inf, 0.0)
    # A second step starts from R, reached by the first: at most one step deep, so that no cycle feeds itself.
    reached = [*produced.get(REPLICATE, []), *into[REPLICATE]]
    for target in wanted:
        if target == REPLICATE:
            continue
        price = costs.conversion_s(value, REPLICATE, target)
        if price != float("inf") and into[REPLICATE]:
            column = program.column(price, integral=False)
            program.row([(column, 1.0), *((p, -1.0) for p in reached)], -np.inf, 0.0)
            into[target].append(column)
    for need in consumers:
        for state, columns in need.items():
            supply = [*((p, 1.0) for p in produced.get(state, [])), *((c, 1.0) for c in into[state])]
            program.row([*supply, *((c, -1.0) for c in columns)], 0.0, np.inf)
