"""What a role lets one graph do on a mesh axis: the modes of its ops, less those that lead nowhere."""

from __future__ import annotations

from dataclasses import replace

from galvatron.ir.factors import FactorTable, OpFactor
from galvatron.ir.graph import Graph
from galvatron.ir.layout import Axis
from galvatron.partition.boundary import Border, Role, matrices, residual_stream
from galvatron.partition.groups import Choices, MatrixFactors, Modes
from galvatron.partition.modes import Mode, Split, op_modes
from galvatron.partition.padding import without_stranded_padding
from galvatron.partition.solver import Solution

Taken = list[dict[OpFactor, int]]
"""Per op, how many ways other axes shard each of its factors already."""


class ClassChoices:
    """What sharding asks of the graph of a class whatever the degrees: its factors, and the choices under each role."""

    def __init__(self, graph: Graph, border: Border) -> None:
        self.graph, self.border = graph, border
        self.table = FactorTable(graph)
        self._found: dict[tuple[Role, frozenset[str]], RoleChoices] = {}

    def under(self, role: Role, whole: frozenset[str]) -> RoleChoices:
        """The choices under a role; `whole` is state that is not to be sharded."""
        if (role, whole) not in self._found:
            self._found[role, whole] = RoleChoices(self.graph, self.border, self.table, role, whole)
        return self._found[role, whole]


class RoleChoices:
    """The choices of one graph under one role, on whatever axes; `whole` is state that is not to be sharded."""

    def __init__(
        self, graph: Graph, border: Border, table: FactorTable, role: Role, whole: frozenset[str] = frozenset()
    ) -> None:
        self._graph = graph
        self._border = border
        self._table = table
        self._role = role
        self.allowed = role.allowed(graph, border, table)
        self._shardable = border.trainable - whole
        shared = matrices(graph, border, table) & self._shardable if role.matrices else frozenset()
        places = role.parameters(graph, border, table), residual_stream(graph, border, table)
        self._factors = MatrixFactors(graph, table, shared, *places)

    def on(self, axis: Axis, taken: Taken, outer: Solution | None = None) -> Choices:
        """The choices on one axis; on a sub-axis inside another one, of which `outer` is the solution, every op does
        what it does there where it can, so that the two send together."""
        modes = [
            op_modes(
                self._graph,
                index,
                self._table,
                axis,
                self._border.differentiable,
                taken[index],
                self.allowed,
                ring=self._role.ring,
                folded=self._role.folded,
                padding=self._role.matrices,
            )
            for index in range(len(self._graph.ops))
        ]
        if not self._role.matrices:
            return Choices(modes)
        read = frozenset(self._graph.outputs) - self._border.given_outputs
        modes = without_stranded_padding(self._graph, modes, self._shardable, read)
        if outer is None:
            return self._factors.choices(modes)
        sharded = frozenset(name for name, state in outer.state.items() if isinstance(state, Split))
        choices = self._factors.choices(modes, sharded)
        return replace(choices, modes=_alike(choices.modes, outer.modes))

    def outermost(self, axis: Axis, taken: Taken) -> tuple[Axis, Axis | None]:
        """The axis, or the part of it that is to be solved first, and what is then left."""
        if not self._role.matrices:
            return axis, None
        size = self._factors.outermost(axis.size, lambda n: self.on(replace(axis, size=n), taken))
        return (axis, None) if size == axis.size else axis.cut(size)


def _alike(modes: Modes, outer: tuple[Mode, ...]) -> Modes:
    """For every op the one mode that is as on the outer sub-axis, where there is such a mode."""
    alike = [
        tuple(m for m in choices if (m.factor, m.operands, m.results) == (o.factor, o.operands, o.results))
        for choices, o in zip(modes, outer, strict=True)
    ]
    return [same or choices for same, choices in zip(alike, modes, strict=True)]
