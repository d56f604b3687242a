"""The SPMD partitioner: a layer class and a strategy become the local graph that one rank runs.

Axis by axis, outermost first, a role sets the boundary condition and the solver picks a mode for every op; the choices
of all axes together give the local graph, with every collective and its adjoint in place.
"""

from __future__ import annotations

from collections.abc import Mapping

from galvatron.errors import StrategyError, did_you_mean
from galvatron.ir.graph import Graph
from galvatron.ir.layout import Axis, Layout, Placement, Shard
from galvatron.ir.program import LayerClass
from galvatron.ir.strategy import Strategy
from galvatron.ir.types import BATCH, exact_quotient
from galvatron.machine import Machine
from galvatron.passes.sharding.boundary import ROLES, Border, Role
from galvatron.passes.sharding.choices import RoleChoices, Taken
from galvatron.passes.sharding.factors import FactorTable
from galvatron.passes.sharding.localize import Localizer
from galvatron.passes.sharding.modes import Mode, Split, State, pieces
from galvatron.passes.sharding.prices import Prices
from galvatron.passes.sharding.solver import Boundary, Costs, Solution, solve


def shard_class(
    cls: LayerClass,
    strategy: Strategy,
    machine: Machine,
    border: Border,
    *,
    batch: int,
    kept: Mapping[str, Layout],
) -> LayerClass:
    """The local form of a layer class under a strategy, named `class@strategy`.

    Args:
        border: what the class is to its program (`Partitioner.borders`).
        batch: samples per data-parallel shard at which the solver prices its choices.
        kept: layouts on the mesh of the strategy that some trainable state is to have. On an axis, or a sub-axis of
            one, where its ops cannot read it so it is whole.

    Raises:
        StrategyError: the strategy has a role that the partitioner does not know.
    """
    graph = cls.graph
    table = FactorTable(graph)
    differentiable = border.differentiable
    shares = _Shares(graph)
    solved: list[tuple[Axis, Boundary, Solution]] = []
    for position, whole_axis in enumerate(strategy.mesh):
        placed = {name: layout[position] for name, layout in kept.items()}
        role = role_of(strategy, whole_axis)
        offered = RoleChoices(graph, border, table, role, whole_state(placed))
        outer: Solution | None = None
        left: Axis | None = whole_axis
        while left is not None:
            axis, left = offered.outermost(left, shares.taken)
            choices = offered.on(axis, shares.taken, outer)
            boundary = role.boundary(graph, border, table, choices, placed)
            _check_divides(cls.name, axis, boundary, shares)
            prices = Prices(
                graph, table, axis, machine, batch * strategy.degree("dp"), border, shares.taken, shares.bytes
            )
            outer = solve(graph, choices.modes, boundary, Costs(prices.op_s, prices.conversion_s, prices.state_s))
            shares.take(axis.size, boundary, outer)
            solved.append((axis, boundary, outer))
    mesh = tuple(axis for axis, _, _ in solved)
    local = _localized(graph, mesh, strategy.degree("dp"), differentiable, [(b, s) for _, b, s in solved])
    return LayerClass(f"{cls.name}@{strategy}", local, base=cls.name, strategy=strategy, mesh=mesh)


def whole_state(placed: Mapping[str, Placement]) -> frozenset[str]:
    """The state that is not to be sharded on an axis."""
    return frozenset(name for name, placement in placed.items() if not isinstance(placement, Shard))


def _check_divides(cls: str, axis: Axis, boundary: Boundary, shares: _Shares) -> None:
    for name, state in (*boundary.inputs.items(), *boundary.outputs.items()):
        if isinstance(state, Split) and state.size != BATCH:
            ways = pieces(axis) * shares.cuts.get((name, state), 1)
            if exact_quotient(state.size, ways) is None:
                raise StrategyError(
                    f"layer class {cls!r}: axis {axis} cannot shard {name!r}, whose sequence of {state.size} does not "
                    f"divide into {ways} pieces; choose another degree or sequence length"
                )


def role_of(strategy: Strategy, axis: Axis) -> Role:
    """The role that a strategy gives one of its mesh axes, or a part of one.

    Raises:
        StrategyError: a role that the partitioner does not know.
    """
    name = next(a.role for a in strategy.axes if a.role.partition("+")[0] == axis.parent)
    if name not in ROLES:
        raise StrategyError(f"strategy {strategy}: role {name!r} is not supported; {did_you_mean(name, ROLES)}")
    return ROLES[name]


class _Shares:
    """How far the axes solved so far have cut each op's factors, and each value's bytes."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.bytes: dict[str, float] = {}
        self.cuts: dict[tuple[str, State], int] = {}
        self.taken: Taken = [{} for _ in graph.ops]

    def take(self, axis_size: int, boundary: Boundary, solution: Solution) -> None:
        for i, (op, mode) in enumerate(zip(self.graph.ops, solution.modes, strict=True)):
            if mode.factor is not None:
                self.taken[i][mode.factor] = self.taken[i].get(mode.factor, 1) * axis_size
            for value, state in zip(op.results, mode.results, strict=True):
                self._shrink(value.name, state, axis_size)
        for name, state in (*boundary.inputs.items(), *solution.state.items()):
            self._shrink(name, state, axis_size)

    def _shrink(self, name: str, state: State, axis_size: int) -> None:
        if isinstance(state, Split):
            self.bytes[name] = self.bytes.get(name, 1.0) / axis_size
            self.cuts[name, state] = self.cuts.get((name, state), 1) * axis_size


def _localized(
    graph: Graph,
    mesh: tuple[Axis, ...],
    batch_ways: int,
    differentiable: frozenset[str],
    solved: list[tuple[Boundary, Solution]],
) -> Graph:
    """The local graph, from one solution per mesh axis."""

    def modes_of(index: int) -> list[Mode]:
        return [solution.modes[index] for _, solution in solved]

    def per_axis(columns: list[tuple[State, ...]], count: int) -> list[tuple[State, ...]]:
        return [tuple(column[i] for column in columns) for i in range(count)]

    ops = graph.ops
    return Localizer(graph, mesh, batch_ways, differentiable).run(
        inputs={v.name: tuple(b.inputs[v.name] for b, _ in solved) for v in graph.inputs},
        state={v.name: tuple(s.state[v.name] for _, s in solved) for v in graph.state},
        outputs={name: tuple(b.outputs[name] for b, _ in solved) for name in graph.outputs},
        operands=[per_axis([m.operands for m in modes_of(i)], len(op.operands)) for i, op in enumerate(ops)],
        results=[per_axis([m.results for m in modes_of(i)], len(op.results)) for i, op in enumerate(ops)],
        spmd=[
            next(
                ((a.name, m.factor.size) for a, m in zip(mesh, modes_of(i), strict=True) if m.spmd and m.factor),
                None,
            )
            for i in range(len(ops))
        ],
    )
