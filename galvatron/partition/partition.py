"""The SPMD partitioner: a layer class and a strategy become the local graph that one rank runs.

Axis by axis, outermost first, a role sets the boundary condition and the solver picks a mode for every op; the choices
of all axes together give the local graph, with every collective and its adjoint in place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from galvatron.errors import StrategyError, did_you_mean
from galvatron.ir.graph import Graph
from galvatron.ir.layout import BROADCAST, Axis, Layout, Placement, Shard
from galvatron.ir.program import LayerClass
from galvatron.ir.strategy import Strategy
from galvatron.ir.types import BATCH, exact_quotient
from galvatron.machine import Machine
from galvatron.partition.boundary import ROLES, Role
from galvatron.partition.choices import ClassChoices, Taken
from galvatron.partition.decisions import Decision, Offer, decisions
from galvatron.partition.localize import Localizer
from galvatron.partition.modes import AxisState, Mode, Split, pieces
from galvatron.partition.prices import Prices
from galvatron.partition.solver import Boundary, Costs, NoSolutionError, Solution, solve


@dataclass(frozen=True)
class ShardedClass:
    """A layer class under a strategy: its local form, and per mesh axis of it the decision for each op."""

    local: LayerClass
    decisions: tuple[tuple[Decision, ...], ...]


@dataclass(frozen=True)
class _Solved:
    axis: Axis
    boundary: Boundary
    solution: Solution
    decisions: tuple[Decision, ...]


def shard_class(
    cls: LayerClass,
    strategy: Strategy,
    machine: Machine,
    offers: ClassChoices,
    *,
    batch: int,
    kept: Mapping[str, Layout],
) -> ShardedClass:
    """A layer class under a strategy; the local form is named `class@strategy`.

    Args:
        offers: of the class, with what it is to its program (`Partitioner.borders`).
        batch: samples per data-parallel shard at which the solver prices its choices.
        kept: layouts on the mesh of the strategy that some trainable state is to have. On an axis, or a sub-axis of
            one, where its ops cannot read it so it is whole.

    Raises:
        StrategyError: the strategy has a role that the partitioner does not know.
    """
    graph, border, table = cls.graph, offers.border, offers.table
    differentiable = border.differentiable
    shares = _Shares(graph)
    solved: list[_Solved] = []
    for position, (whole_axis, name) in enumerate(zip(strategy.mesh, strategy.roles, strict=True)):
        placed = {name: layout[position] for name, layout in kept.items()}
        role = _role(strategy, name)
        offered = offers.under(role, _whole_state(placed))
        outer: _Solved | None = None
        left: Axis | None = whole_axis
        while left is not None:
            axis, left = offered.outermost(left, shares.taken)
            choices = offered.on(axis, shares.taken, outer.solution if outer else None)
            boundary = role.boundary(graph, border, table, choices, placed)
            _check_divides(cls.name, axis, boundary, shares)
            prices = Prices(
                graph, table, axis, machine, batch * strategy.degree("dp"), border, shares.taken, shares.bytes
            )
            costs = Costs(prices.op_s, prices.conversion_s, prices.state_s)
            boundary, solution = _solve(graph, choices.modes, boundary, costs, border.trainable)
            offer = Offer(table, axis, role.folded, choices.modes, offered.allowed, shares.taken)
            made = decisions(graph, offer, boundary, solution, outer.decisions if outer else None)
            outer = _Solved(axis, boundary, solution, made)
            shares.take(axis.size, boundary, solution)
            solved.append(outer)
    mesh = tuple(one.axis for one in solved)
    local = _localized(graph, mesh, strategy.degree("dp"), differentiable, solved)
    return ShardedClass(
        LayerClass(f"{cls.name}@{strategy}", local, base=cls.name, strategy=strategy, mesh=mesh),
        tuple(one.decisions for one in solved),
    )


_WHOLE_S = 1e3
"""The price of all state that is whole though it was not to be: above that of anything else."""


def _solve(
    graph: Graph, modes: list[tuple[Mode, ...]], boundary: Boundary, costs: Costs, trainable: frozenset[str]
) -> tuple[Boundary, Solution]:
    """The cheapest choice under a boundary condition, and the condition.

    State that is to be in parts may leave no choice, such as a matrix that two ops read unlike. Then as little of it as
    can be is whole.
    """
    try:
        return boundary, solve(graph, modes, boundary, costs)
    except NoSolutionError:
        sizes = {v.name: float(v.type.numel) for v in graph.state if BROADCAST not in boundary.state[v.name]}
        sizes = {name: size for name, size in sizes.items() if name in trainable}
        if not sizes:
            raise

    def state_s(name: str, state: AxisState) -> float:
        is_last_resort = name in sizes and state == BROADCAST
        return costs.state_s(name, state) + is_last_resort * _WHOLE_S * sizes.get(name, 0.0) / sum(sizes.values())

    states = {name: (*states, BROADCAST) if name in sizes else states for name, states in boundary.state.items()}
    boundary = replace(boundary, state=states)
    return boundary, solve(graph, modes, boundary, replace(costs, state_s=state_s))


def _whole_state(placed: Mapping[str, Placement]) -> frozenset[str]:
    """The state that is not to be sharded on an axis."""
    return frozenset(name for name, placement in placed.items() if not isinstance(placement, Shard))


def _check_divides(cls: str, axis: Axis, boundary: Boundary, shares: _Shares) -> None:
    for name, state in (*boundary.inputs.items(), *boundary.outputs.items()):
        if isinstance(state, Split) and state.size != BATCH:
            ways = pieces(axis, state.folded) * shares.cuts.get(_factor(name, state), 1)
            if exact_quotient(state.size, ways) is None:
                raise StrategyError(
                    f"layer class {cls!r}: axis {axis} cannot shard {name!r}, whose dimension of {state.size} does not "
                    f"divide into {ways} pieces; choose another degree or size"
                )


def _role(strategy: Strategy, name: str) -> Role:
    if name not in ROLES:
        raise StrategyError(f"strategy {strategy}: role {name!r} is not supported; {did_you_mean(name, ROLES)}")
    return ROLES[name]


class _Shares:
    """How far the axes solved so far have cut each op's factors, and each value's bytes."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.bytes: dict[str, float] = {}
        self.cuts: dict[tuple[str, Split], int] = {}
        self.taken: Taken = [{} for _ in graph.ops]

    def take(self, axis_size: int, boundary: Boundary, solution: Solution) -> None:
        for i, (op, mode) in enumerate(zip(self.graph.ops, solution.modes, strict=True)):
            if mode.factor is not None:
                self.taken[i][mode.factor] = self.taken[i].get(mode.factor, 1) * axis_size
            for value, state in zip(op.results, mode.results, strict=True):
                self._shrink(value.name, state, axis_size)
        for name, state in (*boundary.inputs.items(), *solution.state.items()):
            self._shrink(name, state, axis_size)

    def _shrink(self, name: str, state: AxisState, axis_size: int) -> None:
        if isinstance(state, Split):
            self.bytes[name] = self.bytes.get(name, 1.0) / axis_size
            factor = _factor(name, state)
            self.cuts[factor] = self.cuts.get(factor, 1) * axis_size


def _factor(name: str, split: Split) -> tuple[str, Split]:
    """What of a value is sharded, whether in folded slices or others."""
    return name, replace(split, folded=False)


def _localized(
    graph: Graph,
    mesh: tuple[Axis, ...],
    batch_ways: int,
    differentiable: frozenset[str],
    solved: list[_Solved],
) -> Graph:
    """The local graph, from one solution per mesh axis."""

    def modes_of(index: int) -> list[Mode]:
        return [one.solution.modes[index] for one in solved]

    def per_axis(columns: list[tuple[AxisState, ...]], count: int) -> list[tuple[AxisState, ...]]:
        return [tuple(column[i] for column in columns) for i in range(count)]

    ops = graph.ops
    wanted = [name for name in graph.outputs if all(name in one.boundary.outputs for one in solved)]
    return Localizer(graph, mesh, batch_ways, differentiable).run(
        inputs={v.name: tuple(one.boundary.inputs[v.name] for one in solved) for v in graph.inputs},
        state={v.name: tuple(one.solution.state[v.name] for one in solved) for v in graph.state},
        outputs={name: tuple(one.boundary.outputs[name] for one in solved) for name in wanted},
        operands=[per_axis([m.operands for m in modes_of(i)], len(op.operands)) for i, op in enumerate(ops)],
        results=[per_axis([m.results for m in modes_of(i)], len(op.results)) for i, op in enumerate(ops)],
        spmd=[next(((a, m) for a, m in zip(mesh, modes_of(i), strict=True) if m.spmd), None) for i in range(len(ops))],
    )
