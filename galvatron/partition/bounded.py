"""A class under a boundary condition; where that leaves no choice, some state that was to be in parts is whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from galvatron.ir.graph import Graph
from galvatron.partition.modes import AxisState, Mode
from galvatron.partition.solver import Boundary, ClassProblem, Costs, NoSolutionError, Solution

_WHOLE_S = 1e3
"""The price of all state that is whole though it was not to be: above that of anything else."""


@dataclass(frozen=True, eq=False)
class Bounded:
    """The modes of every op of a graph, and what is to hold around it.

    Attributes:
        whole: by parameter, how it is whole on every rank.
    """

    graph: Graph
    modes: list[tuple[Mode, ...]]
    boundary: Boundary
    whole: Mapping[str, AxisState]

    def solve(self, costs: Costs) -> tuple[Boundary, Solution]:
        """The cheapest choice, and the boundary condition that it fits.

        State that is to be in parts may leave no choice, such as a matrix that two ops read unlike. Then as little of
        it as can be is whole.

        Raises:
            NoSolutionError: there is none even so.
        """
        try:
            return self.boundary, self._problem.solve(costs)
        except NoSolutionError:
            if not self._in_parts:
                raise

        def state_s(name: str, state: AxisState) -> float:
            is_last_resort = name in self._in_parts and state == self.whole[name]
            size, all_sizes = self._in_parts.get(name, 0.0), sum(self._in_parts.values())
            return costs.state_s(name, state) + is_last_resort * _WHOLE_S * size / all_sizes

        return self._wider, self._wider_problem.solve(replace(costs, state_s=state_s))

    @cached_property
    def _problem(self) -> ClassProblem:
        return ClassProblem(self.graph, self.modes, self.boundary)

    @cached_property
    def _in_parts(self) -> dict[str, float]:
        """The parameters that may not be whole, each with its size."""
        in_parts = {name for name, whole in self.whole.items() if whole not in self.boundary.state[name]}
        own = [value for value in self.graph.state if value.name in in_parts]
        return {value.name: float(value.type.numel) for value in own}

    @cached_property
    def _wider(self) -> Boundary:
        """The condition under which all of it may be whole."""
        state = {
            name: (*states, self.whole[name]) if name in self._in_parts else states
            for name, states in self.boundary.state.items()
        }
        return replace(self.boundary, state=state)

    @cached_property
    def _wider_problem(self) -> ClassProblem:
        return ClassProblem(self.graph, self.modes, self._wider)
