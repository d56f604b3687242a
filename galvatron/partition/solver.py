"""The solver: one mode per op of a layer class, at the least communication plus compute time.

For one mesh axis, a mode per op and a state per piece of state are chosen; a value is converted where it is not needed
as it is made. The cheapest choice is found exactly: by elimination, or where too much hangs together by an integer
program.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from galvatron.errors import GalvatronError
from galvatron.ir.graph import Graph
from galvatron.partition.choosing import Delivery, End, Problem, Quote, Steps
from galvatron.partition.elimination import Elimination
from galvatron.partition.integer_program import labels_by_program
from galvatron.partition.modes import AxisState, Mode


@dataclass(frozen=True)
class Boundary:
    """What surrounds a class on one axis: given input states, wanted output states, and the states each piece of state
    (parameter or buffer) may be kept in."""

    inputs: Mapping[str, AxisState]
    outputs: Mapping[str, AxisState]
    state: Mapping[str, tuple[AxisState, ...]]


@dataclass(frozen=True)
class Costs:
    """Prices in seconds: of an op in a mode, of the steps of a value between states (as in `Quote`), of keeping a piece
    of state."""

    op_s: Callable[[int, Mode], float]
    steps_s: Callable[[str, Steps], tuple[float, ...]]
    state_s: Callable[[str, AxisState], float]


@dataclass(frozen=True, eq=False)
class Solution:
    """The chosen mode per op, the state of each parameter and buffer, and the objective in seconds."""

    modes: tuple[Mode, ...]
    state: dict[str, AxisState]
    objective_s: float


class NoSolutionError(GalvatronError):
    """No choice of modes satisfies a boundary condition."""


class ClassProblem:
    """What there is to choose of a class under a boundary condition, to be solved for one costs after the other."""

    def __init__(self, graph: Graph, modes: list[tuple[Mode, ...]], boundary: Boundary) -> None:
        self._modes, self._boundary = modes, boundary
        self._problem = problem = Problem()
        made: dict[str, End] = {}
        read: dict[str, list[End]] = {name: [] for name in graph.values}
        self._kept = {name: problem.choice(len(states)) for name, states in boundary.state.items()}
        made.update((name, End(problem.choice(1), (state,))) for name, state in boundary.inputs.items())
        made.update((name, End(choice, boundary.state[name])) for name, choice in self._kept.items())
        self._chosen: list[int] = []
        for op, ways in zip(graph.ops, modes, strict=True):
            choice = problem.choice(len(ways))
            self._chosen.append(choice)
            for position, name in enumerate(op.operands):
                read[name].append(End(choice, tuple(mode.operands[position] for mode in ways)))
            for position, value in enumerate(op.results):
                made[value.name] = End(choice, tuple(mode.results[position] for mode in ways))
        for name in graph.outputs:
            if name in boundary.outputs:
                read[name].append(End(problem.choice(1), (boundary.outputs[name],)))
        problem.deliveries += (Delivery(name, made[name], tuple(ends)) for name, ends in read.items() if ends)

    def solve(self, costs: Costs) -> Solution:
        """The cheapest choice of modes.

        Raises:
            NoSolutionError: no choice satisfies the boundary.
        """
        quote = self._quote(costs)
        by_elimination = self._elimination.order is not None
        labels, objective_s = (
            self._elimination.labels(quote) if by_elimination else labels_by_program(self._problem, quote)
        )
        if np.isinf(objective_s):
            raise NoSolutionError("the sharding of a layer class has no solution: nothing fits what surrounds it")
        return Solution(
            tuple(ways[labels[choice]] for ways, choice in zip(self._modes, self._chosen, strict=True)),
            {name: self._boundary.state[name][labels[choice]] for name, choice in self._kept.items()},
            objective_s,
        )

    @cached_property
    def _elimination(self) -> Elimination:
        return Elimination(self._problem)

    def _quote(self, costs: Costs) -> Quote:
        choices = [(0.0,) * labels for labels in self._problem.choices]
        for name, choice in self._kept.items():
            choices[choice] = tuple(costs.state_s(name, state) for state in self._boundary.state[name])
        for index, (choice, ways) in enumerate(zip(self._chosen, self._modes, strict=True)):
            choices[choice] = tuple(costs.op_s(index, mode) for mode in ways)
        return Quote(choices, [costs.steps_s(one.value, one.steps) for one in self._problem.deliveries])


def solve(graph: Graph, modes: list[tuple[Mode, ...]], boundary: Boundary, costs: Costs) -> Solution:
    """The cheapest choice of modes under a boundary condition.

    Raises:
        NoSolutionError: no choice satisfies the boundary.
    """
    return ClassProblem(graph, modes, boundary).solve(costs)
