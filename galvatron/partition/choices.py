"""What a role lets one graph do on a mesh axis: the modes of its ops, less those that lead nowhere.

All of it follows from what of the ops fits on the axis (`modes.Fits`): for all degrees with the same fits it is found
once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from operator import itemgetter

from galvatron.ir.factors import FactorTable, OpFactor
from galvatron.ir.graph import Graph
from galvatron.ir.layout import Placement
from galvatron.partition.boundary import Border, Role, matrices, residual_stream
from galvatron.partition.bounded import Bounded
from galvatron.partition.groups import Choices, MatrixFactors, Modes
from galvatron.partition.modes import Fits, Mode, Split, fits, op_modes, routes_of
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
        self._allowed = [
            [number for number, factor in enumerate(table.op_factors(index)) if self.allowed(index, factor)]
            for index in range(len(graph.ops))
        ]
        self._routes = routes_of(graph, table) if role.routes else ()
        self._shardable = border.parameters - whole
        shared = matrices(graph, border, table) & self._shardable if role.matrices else frozenset()
        places = role.parameters(graph, border, table), residual_stream(graph, border, table)
        self._factors = MatrixFactors(graph, table, shared, *places)
        self._modes: dict[tuple[int, Fits], tuple[Mode, ...]] = {}
        self._choices: dict[tuple[object, ...], Choices] = {}
        self._bounded: dict[tuple[object, ...], Bounded] = {}

    def on(self, size: int, taken: Taken, outer: Solution | None = None) -> Choices:
        """The choices on an axis of so many ranks; on a sub-axis inside another one, of which `outer` is the solution,
        every op does what it does there where it can, so that the two send together."""
        role = self._role
        options = {"ring": role.ring, "routes": self._routes, "folded": role.folded, "padding": role.matrices}
        fitting = tuple(
            fits(self._graph, index, self._table, size, taken[index], allowed, **options)
            for index, allowed in enumerate(self._allowed)
        )
        key = fitting, outer and (outer.modes, tuple(outer.state.items()))
        if key not in self._choices:
            self._choices[key] = self._of([self._modes_of(*each) for each in enumerate(fitting)], outer)
        return self._choices[key]

    def _modes_of(self, index: int, fitting: Fits) -> tuple[Mode, ...]:
        key = index, fitting
        if key not in self._modes:
            differentiable, folded = self._border.differentiable, self._role.folded
            self._modes[key] = op_modes(self._graph, index, self._table, differentiable, fitting, folded=folded)
        return self._modes[key]

    def _of(self, modes: Modes, outer: Solution | None) -> Choices:
        """What remains of all modes."""
        if not self._role.matrices:
            return Choices(modes)
        read = frozenset(self._graph.outputs) - self._border.given_outputs
        modes = without_stranded_padding(self._graph, modes, self._shardable, read)
        if outer is None:
            return self._factors.choices(modes)
        sharded = frozenset(name for name, state in outer.state.items() if isinstance(state, Split))
        choices = self._factors.choices(modes, sharded)
        return replace(choices, modes=_alike(choices.modes, outer.modes))

    def outermost(self, size: int, taken: Taken) -> int:
        """Of an axis of so many ranks, how many the part of it has that is to be solved first; all, where it needs no
        cut."""
        if not self._role.matrices:
            return size
        return self._factors.outermost(size, lambda part: self.on(part, taken))

    def bounded(self, choices: Choices, kept: Mapping[str, Placement]) -> Bounded:
        """The choices under the boundary condition of an axis.

        Args:
            kept: how the axis is to place some of the parameters, as far as the ops can read it so.
        """
        key = choices, tuple(sorted(kept.items(), key=itemgetter(0)))
        if key not in self._bounded:
            boundary = self._role.boundary(self._graph, self._border, self._table, choices, kept)
            whole = {name: self._border.whole(name) for name in self._border.parameters}
            self._bounded[key] = Bounded(self._graph, choices.modes, boundary, whole)
        return self._bounded[key]


def _alike(modes: Modes, outer: tuple[Mode, ...]) -> Modes:
    """For every op the one mode that is as on the outer sub-axis, where there is such a mode."""
    alike = [
        tuple(m for m in choices if (m.factor, m.operands, m.results) == (o.factor, o.operands, o.results))
        for choices, o in zip(modes, outer, strict=True)
    ]
    return [same or choices for same, choices in zip(alike, modes, strict=True)]
