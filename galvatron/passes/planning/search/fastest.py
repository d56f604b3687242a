"""The best plan over many settings: what each takes at least decides in which order they are solved, and whether."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from galvatron.costs.objective import Setting
from galvatron.passes.planning.search.problems import Found, Joint, Problem, Solved, uniform
from galvatron.passes.planning.search.tables import Stages, TableBuilder
from galvatron.passes.planning.search.watch import Watch
from galvatron.solver import Bounds, RankBounds

_UNIFORM = 16
"""So many plans of one strategy are tried first, so that bounds have something to be compared with."""

_JOINT = 4
"""Of choices whose devices hold several stages so many are solved, those that promise most."""

_FIRST, _AGAIN, _LAST = range(3)
"""When a choice is looked at."""

_WIDER = 8
"""So many times the width is followed of a choice that is solved again."""


def fastest(
    builders: Sequence[TableBuilder],
    budget_bytes: float,
    *,
    gap: float = 0.0,
    width: int | None = None,
    watch: Watch | None = None,
) -> tuple[Setting, Stages] | None:
    """The best plan over all choices, the most promising first; None if nothing fits the budget.

    What a choice takes at least, whatever memory there is, is known at once. When no other promises more, what it takes
    at least within the budget is asked for, with plans of few strategies that may be good; and when then still none
    does, it is solved. When all others are, it is solved again, following more, if it may still have something better
    than what is known by then. Choices whose devices hold several stages come last, so that what they promise is
    compared with a good plan: they promise most, and keep least of it. Only the first of these are solved, once there
    is a plan; of the others what they promise stands in what is proven. A choice whose ties are open is solved as if
    each layer could keep them in its own way; where that is what the best one does, its ways are choices of their own,
    of which plans of few strategies are not tried, since there may be hundreds.

    Args:
        builders: of the choices.
        gap: the share of its time that it may be slower than the best one by.
        width: how many partial choices are followed (`solve_pipeline`); None for as many as that takes.
        watch: is told what is found on the way, and what is proven of it in the end.
    """
    watch = watch or Watch()
    problems: list[Problem] = []
    for builder in builders:
        watch.costing(len(problems), len(builders))
        problems.append(Problem.of(builder, budget_bytes))
    best: Found | None = None
    best_s = bound_s = math.inf

    def try_(problem: Problem, left: np.ndarray, **limits: Any) -> Solved:
        """Looks for something better among what is left to each layer."""
        nonlocal best, best_s
        solved = problem.solved(left, best_s, **limits) if left.any() else Solved(None, math.inf)
        if solved.found is not None:
            best, best_s = solved.found, solved.found.seconds
            watch.found(best_s, best.plan)
        return solved

    for uniform_s, which, column in uniform(problems, _UNIFORM):
        if uniform_s >= best_s:
            break
        try_(problems[which], problems[which].everywhere(np.array([column])))
    waiting: list[tuple[int, float, int, Bounds | RankBounds | None]] = []
    promises: dict[int, float] = {}

    def wait(turn: int, promised_s: float, which: int, bounds: Bounds | RankBounds | None = None) -> None:
        promises[which] = promised_s
        heapq.heappush(waiting, (turn, promised_s, which, bounds))

    for which, problem in enumerate(problems):
        wait(_LAST if isinstance(problem, Joint) else _FIRST, problem.least_s, which)
    joint = 0
    while waiting:
        turn, promised_s, which, bounds = heapq.heappop(waiting)
        problem, wanted_s = problems[which], best_s * (1 - gap)
        watch.solving(len(problems) - len(waiting) - 1, len(problems), min(wanted_s, bound_s, *promises.values()))
        del promises[which]
        if promised_s >= wanted_s:
            continue
        if bounds is None:
            bounds = problem.glance(wanted_s)
            if bounds is not None:
                if isinstance(bounds, Bounds) and not problem.builder.is_way:
                    try_(problem, problem.everywhere(bounds.started))
                wait(turn, max(promised_s, bounds.least_s), which, bounds)
            continue
        if turn == _LAST and joint == _JOINT and best is not None:
            bound_s = min(bound_s, promised_s)
            continue
        again = {"width": width * _WIDER, "tried": width} if width and turn == _AGAIN else {"width": width}
        solved = try_(problem, bounds.by_layer(wanted_s), gap=gap, **again)
        least = max(promised_s, solved.least_s)
        if solved.apart:
            for way in problem.ways(bounds.by_layer(best_s * (1 - gap))):
                problems.append(way)
                wait(turn, max(least, way.least_s), len(problems) - 1)
            continue
        joint += turn == _LAST
        if turn == _FIRST and least < best_s * (1 - gap):
            wait(_AGAIN, least, which, bounds)
        else:
            bound_s = min(bound_s, least)
    watch.solving(len(problems), len(problems), min(bound_s, best_s * (1 - gap)))
    return best and best.plan
