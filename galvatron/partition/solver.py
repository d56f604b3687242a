"""The solver: one mode per op of a layer class, at the least communication plus compute time.

For one mesh axis, a mode per op and a state per piece of state are chosen; a value is converted where it is not needed
as it is made. The cheapest choice is found exactly: by elimination, or where too much hangs together by an integer
program.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial

import numpy as np

from galvatron.errors import GalvatronError
from galvatron.ir.graph import Graph
from galvatron.partition.choosing import Delivery, End, Problem
from galvatron.partition.elimination import labels_by_elimination
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


class NoSolutionError(GalvatronError):
    """No choice of modes satisfies a boundary condition."""


def solve(graph: Graph, modes: list[tuple[Mode, ...]], boundary: Boundary, costs: Costs) -> Solution:
    """The cheapest choice of modes under a boundary condition.

    Raises:
        NoSolutionError: no choice satisfies the boundary.
    """
    problem = Problem()
    made: dict[str, End] = {}
    read: dict[str, list[End]] = {name: [] for name in graph.values}
    kept = {v: problem.choice(tuple(costs.state_s(v, s) for s in states)) for v, states in boundary.state.items()}
    made.update((name, End(problem.choice((0.0,)), (state,))) for name, state in boundary.inputs.items())
    made.update((name, End(choice, boundary.state[name])) for name, choice in kept.items())
    chosen: list[int] = []
    for index, (op, ways) in enumerate(zip(graph.ops, modes, strict=True)):
        choice = problem.choice(tuple(costs.op_s(index, mode) for mode in ways))
        chosen.append(choice)
        for position, name in enumerate(op.operands):
            read[name].append(End(choice, tuple(mode.operands[position] for mode in ways)))
        for position, value in enumerate(op.results):
            made[value.name] = End(choice, tuple(mode.results[position] for mode in ways))
    for name in graph.outputs:
        if name in boundary.outputs:
            read[name].append(End(problem.choice((0.0,)), (boundary.outputs[name],)))
    problem.deliveries += (
        Delivery(made[name], tuple(ends), cache(partial(costs.conversion_s, name)))
        for name, ends in read.items()
        if ends
    )
    labels, objective_s = labels_by_elimination(problem) or labels_by_program(problem)
    if np.isinf(objective_s):
        raise NoSolutionError("the sharding of a layer class has no solution: nothing fits what surrounds it")
    return Solution(
        tuple(ways[labels[choice]] for ways, choice in zip(modes, chosen, strict=True)),
        {name: boundary.state[name][labels[choice]] for name, choice in kept.items()},
        objective_s,
    )
