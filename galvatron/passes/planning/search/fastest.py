"""The best plan over many settings: what each takes at least decides in which order they are solved, and whether."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from galvatron.costs.objective import Setting
from galvatron.passes.planning.search.problems import Joint, Problem, uniform
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
    is a plan; of the others what they promise stands in what is proven.

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
    best: tuple[Setting, Stages] | None = None
    best_s = bound_s = math.inf

    def try_(which: int, left: np.ndarray, **limits: Any) -> float:
        """Looks for something better among what is left to each layer, and returns what else takes at least."""
        nonlocal best, best_s
        if not left.any():
            return math.inf
        found, least = problems[which].solved(left, best_s, **limits)
        if found is not None:
            best_s, best = found[0], (builders[which].setting, found[1])
            watch.found(best_s, best)
        return least

    for uniform_s, which, column in uniform(problems, _UNIFORM):
        if uniform_s >= best_s:
            break
        try_(which, problems[which].everywhere(np.array([column])))
    waiting: list[tuple[int, float, int, Bounds | RankBounds | None]] = [
        (_LAST if isinstance(problem, Joint) else _FIRST, problem.least_s, which, None)
        for which, problem in enumerate(problems)
    ]
    heapq.heapify(waiting)
    promises = {which: promised_s for _, promised_s, which, _ in waiting}
    joint = 0
    while waiting:
        turn, promised_s, which, bounds = heapq.heappop(waiting)
        wanted_s = best_s * (1 - gap)
        watch.solving(len(builders) - len(waiting) - 1, len(builders), min(wanted_s, bound_s, *promises.values()))
        del promises[which]
        if promised_s >= wanted_s:
            continue
        if bounds is None:
            bounds = problems[which].glance(wanted_s)
            if bounds is not None:
                if isinstance(bounds, Bounds):
                    try_(which, problems[which].everywhere(bounds.started))
                promises[which] = max(promised_s, bounds.least_s)
                heapq.heappush(waiting, (turn, promises[which], which, bounds))
            continue
        joint += turn == _LAST
        if joint > _JOINT and best is not None:
            bound_s = min(bound_s, promised_s)
            continue
        wider = width and width * (_WIDER if turn == _AGAIN else 1)
        least = max(promised_s, try_(which, bounds.by_layer(wanted_s), gap=gap, width=wider))
        if turn == _FIRST and least < best_s * (1 - gap):
            promises[which] = least
            heapq.heappush(waiting, (_AGAIN, least, which, bounds))
        else:
            bound_s = min(bound_s, least)
    watch.solving(len(builders), len(builders), min(bound_s, best_s * (1 - gap)))
    return best
