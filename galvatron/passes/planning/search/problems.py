"""One setting as a problem: what its plans take at least, and its best one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from galvatron.costs.objective import Setting, evaluate_plan, memory_of_ranks
from galvatron.passes.planning.search.tables import Stages, TableBuilder
from galvatron.solver import (
    FEW_ROUNDS,
    Bounds,
    InfeasibleError,
    Pipeline,
    RankBounds,
    glance,
    improved,
    least_bytes,
    least_s,
    placed_best,
    rank_bounds,
)


class Found(NamedTuple):
    """Seconds of a step, what a plan says besides its stages, and of these."""

    seconds: float
    setting: Setting
    stages: Stages

    @property
    def plan(self) -> tuple[Setting, Stages]:
        """Without the seconds."""
        return self.setting, self.stages


class Solved(NamedTuple):
    """A plan that is faster than what was known, what no other takes less than, and whether ways to keep ties have to
    be told apart to find the best one."""

    found: Found | None
    least_s: float
    apart: bool = False


@dataclass
class Problem(ABC):
    """A setting with a budget.

    Attributes:
        free: its tables without moves, of which no choice takes more.
    """

    builder: TableBuilder
    budget_bytes: float
    free: Pipeline

    @staticmethod
    def of(builder: TableBuilder, budget_bytes: float) -> Problem:
        """By whether the time of its schedule adds up from its stages."""
        kind = Separable if builder.setting.order.phases else Joint
        return kind(builder, budget_bytes, builder.free(budget_bytes))

    def ways(self, left: np.ndarray) -> Iterator[Problem]:
        """The same for each way to keep ties that are open.

        Args:
            left: (L, S) whether a layer may have a column.
        """
        return (Problem.of(builder, self.budget_bytes) for builder in self.builder.ways(left))

    @property
    @abstractmethod
    def least_s(self) -> float:
        """What no plan takes less than, whatever memory there is."""

    @abstractmethod
    def glance(self, known_s: float) -> Bounds | RankBounds | None:
        """Bounds within the budget, without moves; None where nothing fits that is faster than what is known."""

    @abstractmethod
    def solved(
        self, left: np.ndarray, known_s: float, *, gap: float = 0.0, width: int | None = None, tried: int = 0
    ) -> Solved:
        """A plan that is faster than what is known.

        Args:
            left: (L, S) whether a layer may have a column. gap, width, tried: see `improved`.
        """

    def everywhere(self, columns: np.ndarray) -> np.ndarray:
        """(L, S) some columns, for all layers."""
        left = np.zeros((self.free.chain.layers, self.free.chain.strategies), dtype=bool)
        left[:, columns] = True
        return left


class Separable(Problem):
    """The best plan is found by the solver itself."""

    @property
    def least_s(self) -> float:
        return least_s(self.free)

    def glance(self, known_s: float) -> Bounds | None:
        bounds = glance(self.free)
        return bounds if bounds.relaxations else None

    def solved(
        self, left: np.ndarray, known_s: float, *, gap: float = 0.0, width: int | None = None, tried: int = 0
    ) -> Solved:
        tables = self.builder.tables(self.budget_bytes, left)
        try:
            found, bound_s = improved(tables.pipeline, known_s=known_s, gap=gap, width=width, tried=tried)
        except InfeasibleError:
            return Solved(None, 0.0 if width else np.inf)
        if found is None or found.step_s >= known_s:
            return Solved(None, bound_s)
        stages = tables.stages(found.choice, found.borders)
        setting = self.builder.settled(stages)
        return Solved(setting and Found(found.step_s, setting, stages), bound_s, apart=setting is None)


class Joint(Problem):
    """Devices hold several stages: a few plans that the solver's bounds lead to are priced by playing them."""

    @property
    def least_s(self) -> float:
        return self.builder.ranks(self.free).least_s

    def glance(self, known_s: float) -> RankBounds | None:
        # A schedule that is far too slow needs nobody to look for all that its ranks wait for.
        ranks = self.builder.ranks(self.free)
        if not ranks.fits or rank_bounds(ranks, known_s, FEW_ROUNDS).least_s >= known_s:
            return None
        bounds = rank_bounds(self.builder.ranks(self.free, closely=True), known_s)
        return bounds if bounds.least_s < known_s else None

    def solved(
        self, left: np.ndarray, known_s: float, *, gap: float = 0.0, width: int | None = None, tried: int = 0
    ) -> Solved:
        if self.builder.is_open:
            return Solved(None, 0.0, apart=True)
        # What takes one path's share of a move knows none that is endless.
        tables = self.builder.tables(self.budget_bytes, self.everywhere(np.flatnonzero(left.any(axis=0))))
        model, setting = self.builder.model, self.builder.setting

        def price(choice: np.ndarray, borders: np.ndarray) -> tuple[float, np.ndarray]:
            seconds, reports = evaluate_plan(model, setting, tables.stages(choice, borders))
            used = [memory.total for memory in memory_of_ranks(setting, reports)]
            return seconds, np.array(used) - self.budget_bytes

        found, bound_s = placed_best(self.builder.ranks(tables.pipeline, closely=True), price, known_s, gap)
        return Solved(found and Found(found[0], setting, tables.stages(*found[1:])), bound_s)


def uniform(problems: Sequence[Problem], most: int) -> list[tuple[float, int, int]]:
    """Columns that may do for all layers of a problem by themselves: what they take at least, the position of the
    problem, and the column; those that take least."""
    found: list[tuple[float, int, int]] = []
    for which, problem in enumerate(problems):
        if not isinstance(problem, Separable):
            continue
        chain = problem.free.chain
        seconds = (problem.free.whole_s * chain.total_s + chain.step_s)[chain.kinds].sum(axis=0)
        seconds[least_bytes(problem.free) > problem.free.budget.sum()] = np.inf
        order = np.argsort(seconds, kind="stable")[:most]
        found += [(float(seconds[column]), which, int(column)) for column in order if np.isfinite(seconds[column])]
    return sorted(found)[:most]
