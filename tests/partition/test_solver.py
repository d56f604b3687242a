"""The solver against an exhaustive search on small classes, with an objective computed from scratch."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache
from itertools import product
from types import SimpleNamespace
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from galvatron.errors import GalvatronError
from galvatron.ir.factors import FactorTable
from galvatron.ir.graph import Graph, Op, Ref, Value
from galvatron.ir.layout import BROADCAST, PARTIAL, REPLICATE
from galvatron.ir.types import TensorType
from galvatron.partition import solver
from galvatron.partition.choosing import Problem, Quote, Steps
from galvatron.partition.integer_program import labels_by_program
from galvatron.partition.modes import AxisState, Mode, Split
from galvatron.partition.solver import Boundary, Costs, Solution, solve
from tests.partition.offered import offered

INFINITY = float("inf")
SIZE = 4


class RandomCosts:
    """Prices drawn once per question, some conversions impossible."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def _number(self, *key: object) -> float:
        return random.Random(f"{self._seed} {key}").random()

    def op_s(self, index: int, mode: Mode) -> float:
        return (2 if mode.factor is None else 1) * self._number("op", index)

    def conversion_s(self, name: str, source: AxisState, target: AxisState) -> float:
        number = self._number(name, source, target)
        # Some are impossible, some free, some alike: whatever prices the solver gets, it must choose right.
        return INFINITY if number < 0.15 else 0.0 if number < 0.3 else 0.25 if number < 0.5 else number

    def state_s(self, name: str, state: AxisState) -> float:
        return self._number("state", name, state)

    @property
    def costs(self) -> Costs:
        return Costs(self.op_s, steps_s(self.conversion_s), self.state_s)


def steps_s(
    conversion_s: Callable[[str, AxisState, AxisState], float],
) -> Callable[[str, Steps], tuple[float, ...]]:
    """The prices of steps, from those of conversions from one state to another."""
    return lambda name, steps: tuple(0.0 if a == b else conversion_s(name, a, b) for a, b in steps.pairs)


def random_class(draw: st.DataObject, ops: int) -> Graph:
    """Matrices only: linear layers, sums, products, and a function of one operand."""
    type_ = TensorType("f32", (SIZE, SIZE))
    inputs, state, made = (Value("x", type_),), (Value("w", type_),), []
    for i in range(ops):
        names = [v.name for v in (*inputs, *(op.result for op in made))]
        pick = st.sampled_from(names)
        target, operands = draw.draw(
            st.one_of(
                st.tuples(st.just("aten.linear.default"), st.tuples(pick, st.just("w"))),
                st.tuples(st.sampled_from(["aten.add.Tensor", "aten.mul.Tensor"]), st.tuples(pick, pick)),
                st.tuples(st.sampled_from(["aten.gelu.default", "aten.neg.default"]), st.tuples(pick)),
            )
        )
        made.append(Op(target, tuple(Ref(n) for n in operands), (), (Value(f"y{i}", type_),)))
    return Graph(inputs, state, tuple(made), (f"y{ops - 1}",))


def problem(graph: Graph) -> tuple[list[tuple[Mode, ...]], Boundary]:
    table, differentiable = FactorTable(graph), frozenset(graph.values)
    modes = [offered(graph, i, table, 2, differentiable) for i in range(len(graph.ops))]
    whole = {v.name: REPLICATE for v in graph.inputs}
    kept = (REPLICATE, BROADCAST, Split(0, 1, SIZE), Split(1, 1, SIZE))
    return modes, Boundary(whole, dict.fromkeys(graph.outputs, REPLICATE), {v.name: kept for v in graph.state})


class Objective:
    """What a choice of modes and states costs: work, states, and for each value the cheapest set of conversions."""

    def __init__(self, graph: Graph, modes: list[tuple[Mode, ...]], boundary: Boundary, costs: RandomCosts) -> None:
        self._graph, self._modes, self._boundary, self._costs = graph, modes, boundary, costs

    def of(self, modes: tuple[Mode, ...], state: dict[str, AxisState]) -> float:
        total = sum(self._costs.op_s(i, mode) for i, mode in enumerate(modes))
        total += sum(self._costs.state_s(name, kept) for name, kept in state.items())
        produced: dict[str, AxisState] = {**self._boundary.inputs, **state}
        needed: dict[str, set[AxisState]] = {name: set() for name in self._graph.values}
        for op, mode in zip(self._graph.ops, modes, strict=True):
            produced.update((v.name, s) for v, s in zip(op.results, mode.results, strict=True))
            for name, operand in zip(op.operands, mode.operands, strict=True):
                needed[name].add(operand)
        for name in self._graph.outputs:
            needed[name].add(self._boundary.outputs[name])
        return total + sum(self._delivery_s(n, produced[n], frozenset(s)) for n, s in needed.items())

    @cache  # noqa: B019  # lives as long as one test
    def _delivery_s(self, name: str, source: AxisState, needed: frozenset[AxisState]) -> float:
        """The cheapest copies: grown one at a time, each from any that is there, any state in between allowed."""
        best: dict[frozenset[AxisState], float] = {frozenset([source]): 0.0}
        states = self._states(name)
        for _ in states:
            for have, price in list(best.items()):
                for target in states - have:
                    step = min(self._costs.conversion_s(name, s, target) for s in have)
                    if price + step < best.get(have | {target}, INFINITY):
                        best[have | {target}] = price + step
        return min((price for have, price in best.items() if needed <= have), default=INFINITY)

    @cache  # noqa: B019  # lives as long as one test
    def _states(self, name: str) -> frozenset[AxisState]:
        """The states in which some consumer could ask for a value, and `R`."""
        asked: set[AxisState] = {REPLICATE}
        for op, choices in zip(self._graph.ops, self._modes, strict=True):
            asked.update(m.operands[i] for m in choices for i, n in enumerate(op.operands) if n == name)
        if name in self._graph.outputs:
            asked.add(self._boundary.outputs[name])
        return frozenset(asked)

    def exhaustive(self) -> float:
        names = list(self._boundary.state)
        return min(
            self.of(modes, dict(zip(names, states, strict=True)))
            for modes in product(*self._modes)
            for states in product(*self._boundary.state.values())
        )


def by_program(graph: Graph, modes: list[tuple[Mode, ...]], boundary: Boundary, costs: Costs) -> Solution:
    """As `solve` where too much hangs together for elimination."""
    with mock.patch.object(solver, "Elimination", lambda _: SimpleNamespace(order=None)):
        return solve(graph, modes, boundary, costs)


@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), ops=st.integers(1, 3), seed=st.integers(0, 1000))
def test_the_solution_is_the_cheapest_of_all_choices(data: st.DataObject, ops: int, seed: int) -> None:
    graph = random_class(data, ops)
    modes, boundary = problem(graph)
    prices = RandomCosts(seed)
    costs, objective = prices.costs, Objective(graph, modes, boundary, prices)
    expected = objective.exhaustive()
    if expected == INFINITY:
        for way in (solve, by_program):
            with pytest.raises(GalvatronError):
                way(graph, modes, boundary, costs)
        return
    for way in (solve, by_program):
        solution = way(graph, modes, boundary, costs)
        assert solution.objective_s == pytest.approx(expected, rel=1e-7)
        assert objective.of(solution.modes, solution.state) == pytest.approx(expected, rel=1e-7)


def test_what_hangs_together_in_every_way_is_left_to_the_program() -> None:
    """A sum of all that was made so far, again and again: each value is alive to the end."""
    type_ = TensorType("f32", (SIZE, SIZE))
    pairs = [(f"y{i}", f"y{j}") for i in range(9) for j in range(i)]
    made = [Op("aten.gelu.default", (Ref("x"),), (), (Value(f"y{i}", type_),)) for i in range(9)]
    made += [Op("aten.mul.Tensor", (Ref(a), Ref(b)), (), (Value(f"{a}{b}", type_),)) for a, b in pairs]
    graph = Graph((Value("x", type_),), (), tuple(made), tuple(f"{a}{b}" for a, b in pairs))
    modes, boundary = problem(graph)
    asked: list[object] = []

    def noted(given: Problem, quote: Quote) -> tuple[list[int], float]:
        asked.append(given)
        return labels_by_program(given, quote)

    with mock.patch.object(solver, "labels_by_program", noted):
        solution = solve(graph, modes, boundary, RandomCosts(0).costs)
    assert asked and len(solution.modes) == len(graph.ops)


def solve_one(
    consumers: list[AxisState], source: AxisState, prices: dict[tuple[AxisState, AxisState], float]
) -> Solution:
    """One value in a given state, read by one op per wanted state."""
    type_ = TensorType("f32", (SIZE, SIZE))
    ops = tuple(Op("aten.neg.default", (Ref("x"),), (), (Value(f"y{i}", type_),)) for i in range(len(consumers)))
    graph = Graph((Value("x", type_),), (), ops, ())
    modes = [(Mode((state,), (REPLICATE,)),) for state in consumers]
    costs = Costs(lambda i, mode: 0.0, steps_s(lambda n, s, t: prices.get((s, t), INFINITY)), lambda n, s: 0.0)
    return solve(graph, modes, Boundary({"x": source}, {}, {}), costs)


def test_consumers_share_a_conversion() -> None:
    assert solve_one([REPLICATE] * 3, PARTIAL, {(PARTIAL, REPLICATE): 2.0}).objective_s == pytest.approx(2.0)


def test_copies_are_made_from_copies() -> None:
    """An all-reduce serves both kinds of replicated consumers; a slice of a whole copy is free."""
    shard = Split(0, 1, SIZE)
    prices = {
        (PARTIAL, REPLICATE): 2.0, (PARTIAL, BROADCAST): 4.0, (PARTIAL, shard): 2.0, (REPLICATE, BROADCAST): 1.5,
        (BROADCAST, REPLICATE): 0.0, (BROADCAST, shard): 0.0,
    }  # fmt: skip
    assert solve_one([REPLICATE, BROADCAST], PARTIAL, prices).objective_s == pytest.approx(3.5)
    assert solve_one([shard, REPLICATE, BROADCAST], PARTIAL, prices).objective_s == pytest.approx(3.5)
    assert solve_one([BROADCAST], PARTIAL, prices).objective_s == pytest.approx(3.5)


def test_no_way_is_an_error() -> None:
    with pytest.raises(GalvatronError, match="no solution"):
        solve_one([REPLICATE], PARTIAL, {})
