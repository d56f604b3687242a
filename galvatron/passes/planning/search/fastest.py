"""The best plan over many settings: what each takes at least decides in which order they are solved, and whether."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from galvatron.costs.model import CostModel
from galvatron.costs.objective import Setting
from galvatron.ir.strategy import Strategy
from galvatron.passes.planning.search.tables import Stages, TableBuilder
from galvatron.passes.planning.search.watch import Watch
from galvatron.solver import Bounds, InfeasibleError, Pipeline, glance, improved, least_s

Choice = tuple[Setting, list[tuple[Strategy, ...]]]
"""A setting, and the strategies that each layer may have in it."""

_UNIFORM = 16
"""So many plans of one strategy are tried first, so that bounds have something to be compared with."""


def fastest(
    model: CostModel,
    choices: Sequence[Choice],
    budget_bytes: float,
    *,
    gap: float = 0.0,
    width: int | None = None,
    watch: Watch | None = None,
) -> tuple[Setting, Stages] | None:
    """The best plan over all choices, the most promising first; None if nothing fits the budget.

    What a choice takes at least, whatever memory there is, is known at once. When no other promises more, what it takes
    at least within the budget is asked for, with plans of few strategies that may be good; and when then still none
    does, it is solved.

    Args:
        gap: the share of its time that it may be slower than the best one by.
        width: how many partial choices are followed (`solve_pipeline`); None for as many as that takes.
        watch: is told what is found on the way, and what is proven of it in the end.
    """
    watch = watch or Watch()
    builders: list[TableBuilder] = []
    problems: list[Pipeline] = []
    for choice in choices:
        watch.costing(len(builders), len(choices))
        builders.append(TableBuilder(model, *choice))
        problems.append(builders[-1].free(budget_bytes))
    best: tuple[Setting, Stages] | None = None
    best_s = bound_s = math.inf

    def try_(which: int, columns: np.ndarray, **limits: Any) -> float:
        """Looks for something better, and returns what else takes at least."""
        nonlocal best, best_s
        found, least = _solved(builders[which], budget_bytes, columns, best_s, **limits)
        if found is not None:
            best_s, best = found[0], (choices[which][0], found[1])
            watch.found(best_s, best)
        return least

    for uniform_s, which, column in _uniform(problems):
        if uniform_s >= best_s:
            break
        try_(which, np.array([column]))
    waiting: list[tuple[float, int, Bounds | None]] = [(least_s(p), which, None) for which, p in enumerate(problems)]
    heapq.heapify(waiting)
    while waiting:
        promised_s, which, bounds = heapq.heappop(waiting)
        watch.solving(len(choices) - len(waiting) - 1, len(choices), min(bound_s, promised_s, best_s * (1 - gap)))
        if promised_s >= best_s * (1 - gap):
            break
        if bounds is None:
            bounds = glance(problems[which])
            try_(which, bounds.started)
            if bounds.relaxations:
                heapq.heappush(waiting, (max(promised_s, bounds.least_s), which, bounds))
        else:
            least = try_(which, bounds.columns(best_s * (1 - gap)), gap=gap, width=width)
            bound_s = min(bound_s, max(promised_s, least))
    watch.solving(len(choices), len(choices), min(bound_s, best_s * (1 - gap)))
    return best


def _solved(
    builder: TableBuilder, budget_bytes: float, columns: np.ndarray, known_s: float, **limits: Any
) -> tuple[tuple[float, Stages] | None, float]:
    """The best plan of some strategies that is faster than one that is known, with its seconds; and what no other of
    these strategies takes less than."""
    if not len(columns):
        return None, math.inf
    tables = builder.tables(budget_bytes, columns)
    try:
        found, bound_s = improved(tables.pipeline, known_s=known_s, **limits)
    except InfeasibleError:
        return None, 0.0 if limits.get("width") else math.inf
    if found is None or found.step_s >= known_s:
        return None, bound_s
    return (found.step_s, tables.stages(found.choice, found.borders)), bound_s


def _uniform(problems: Sequence[Pipeline]) -> list[tuple[float, int, int]]:
    """Columns that may do for all layers of a problem by themselves: what they take at least, the position of the
    problem, and the column; those that take least."""
    found: list[tuple[float, int, int]] = []
    for which, problem in enumerate(problems):
        chain = problem.chain
        seconds = (problem.whole_s * chain.total_s + chain.step_s)[chain.kinds].sum(axis=0)
        bytes_ = problem.full.min(axis=0)[chain.kinds].sum(axis=0)
        seconds[bytes_ > problem.budget.sum()] = np.inf
        order = np.argsort(seconds, kind="stable")[:_UNIFORM]
        found += [(float(seconds[column]), which, int(column)) for column in order if np.isfinite(seconds[column])]
    return sorted(found)[:_UNIFORM]
