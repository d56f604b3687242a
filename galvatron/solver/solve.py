"""Solving: bounds first, then sweeps of growing width until nothing that was left out can be better."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from galvatron.errors import BudgetError, GalvatronError
from galvatron.solver.bounds import SLACK, Bounds, bounds_of, glance
from galvatron.solver.labels import sweep
from galvatron.solver.reduced import without_worse, without_worse_places
from galvatron.solver.tables import Chain, Pipeline, worth

_WIDTHS = (8, 64, 1024, 16384)
"""Labels behind each layer in the first sweeps; the last one keeps all."""

_TIES = 1024
"""Labels behind each layer among which the first of equally good choices is looked for."""


class TableError(GalvatronError):
    """Tables that do not fit together, or hold what is no cost; the message names the table."""


class InfeasibleError(BudgetError):
    """No choice fits the budget. `least_bytes` is what every choice takes at least."""

    def __init__(self, message: str, least_bytes: float) -> None:
        super().__init__(message)
        self.least_bytes = least_bytes


@dataclass(frozen=True)
class Choice:
    """The fastest choice of strategies that fits.

    Attributes:
        strategies: of each layer.
        time: seconds of all of them and of the transitions.
        memory: bytes.
        bound: no choice that fits takes fewer seconds. It is `time` unless the search was limited.
        multiplier: seconds that one more byte would save, if strategies could be mixed within a layer.
    """

    strategies: tuple[int, ...]
    time: float
    memory: float
    bound: float
    multiplier: float

    @property
    def gap(self) -> float:
        """The share of its time that the choice may be slower than the best one by."""
        return (self.time - self.bound) / self.time if self.time else 0.0


@dataclass(frozen=True, eq=False)
class Solution:
    """The fastest division into stages, with a strategy for each layer, that fits.

    Attributes:
        choice: (L,) the strategy of each layer.
        borders: (P + 1,) the first layer of each stage, and L.
        step_s: seconds of a step.
        bytes: (P,) the most that each stage has in use.
        bound_s: nothing that fits takes less. It is `step_s` unless the search was limited.
        multipliers: (P,) see `Choice.multiplier`, for the budget of each stage.
    """

    choice: np.ndarray
    borders: np.ndarray
    step_s: float
    bytes: np.ndarray
    bound_s: float
    multipliers: np.ndarray


def solve(
    time: ArrayLike, memory: ArrayLike, transition: ArrayLike, budget: float, *, width: int | None = None
) -> Choice:
    """The fastest choice of one of S strategies for each of L layers whose memory adds up to no more than a budget.

    Of equally fast choices it is the one with the least memory, and of those the first in the order of their numbers,
    unless more than a thousand partial choices come to the same behind one layer.
    Sums are those of 64-bit floating point, so whole numbers of bytes up to 2^53 are exact. Equal layers next to each
    other cost little more than one.

    Args:
        time: (L, S) seconds of each layer under each strategy; infinite where it cannot have one.
        memory: (L, S) bytes.
        transition: (L, S, S) seconds between strategies: `transition[l, s, t]` from `s` at layer `l - 1` to `t` at
            layer `l`; infinite where there is no way. `transition[0]` is not read.
        budget: bytes.
        width: how many partial choices are followed behind each layer; None for as many as the optimum takes.

    Raises:
        TableError: shapes do not fit together, or there are negative or undefined figures.
        InfeasibleError: no choice is within the budget, or there is none at all.
    """
    time, memory, transition = (np.asarray(table, dtype=float) for table in (time, memory, transition))
    _check_tables(time, memory, transition)
    if np.isnan(budget):
        raise TableError("budget: must be a number of bytes, not nan")
    chain = _chain(time, memory, transition)
    nothing = np.zeros((1, *chain.state.shape))
    pipeline = Pipeline(
        chain=chain,
        lines=((1.0, 0.0),),
        wait=0.0,
        budget=np.array([float(budget)]),
        in_flight=np.ones(1),
        late=nothing,
        enter_s=chain.move_s,
        receive_s=np.broadcast_to(0.0, chain.move_s.shape),
        begin=nothing,
        end=nothing,
    )
    found = solve_pipeline(pipeline, width=width)
    assert found is not None, "nothing is known that must be beaten"
    multiplier = float(found.multipliers[0])
    return Choice(tuple(found.choice.tolist()), found.step_s, float(found.bytes[0]), found.bound_s, multiplier)


def _check_tables(time: np.ndarray, memory: np.ndarray, transition: np.ndarray) -> None:
    if time.ndim != 2 or not all(time.shape):
        raise TableError(f"time: must be (layers, strategies), not {time.shape}; give at least one of each")
    layers, strategies = time.shape
    wanted = {"memory": (memory, time.shape), "transition": (transition, (layers, strategies, strategies))}
    for name, (table, shape) in wanted.items():
        if table.shape != shape:
            raise TableError(f"{name}: must be {shape}, as time is {time.shape}, not {table.shape}")
    for name, table in (("time", time), ("memory", memory), ("transition", transition[1:])):
        if not (table >= 0).all():
            layer = int(np.argwhere(~(table >= 0))[0][0]) + (name == "transition")
            raise TableError(f"{name}: layer {layer} has a figure that is negative or undefined; give costs from 0 on")


def _chain(time: np.ndarray, memory: np.ndarray, transition: np.ndarray) -> Chain:
    """The same tables with one row for equal neighbours."""
    possible = np.isfinite(time) & np.isfinite(memory)
    time, memory = np.where(possible, time, np.inf), np.where(possible, memory, 0.0)
    kinds, moves = _rows(time, memory), _rows(transition)
    if len(moves) > 1:
        moves[0] = moves[1]  # the first one is not read, and the first layer may be of a run
    rows, steps = np.unique(kinds), np.unique(moves)
    nothing = np.zeros((len(rows), time.shape[1]))
    return Chain(
        kinds=np.searchsorted(rows, kinds),
        moves=np.searchsorted(steps, moves),
        place=np.arange(time.shape[1]),
        micro_s=time[rows][:, None],
        step_s=nothing,
        state=memory[rows],
        kept=nothing,
        transient=nothing,
        update=nothing,
        move_s=transition[steps],
        move_kept=np.broadcast_to(0.0, transition[steps].shape),
    )


def _rows(*tables: np.ndarray) -> np.ndarray:
    """For each row of tables the first of those next to each other that are equal to it."""
    same = [all(np.array_equal(t[row], t[row - 1]) for t in tables) for row in range(1, len(tables[0]))]
    rows = np.arange(len(tables[0]))
    rows[1:][same] = 0
    return np.maximum.accumulate(rows)


def solve_pipeline(
    pipeline: Pipeline, *, known_s: float = np.inf, gap: float = 0.0, width: int | None = None
) -> Solution | None:
    """The fastest division into stages with a strategy for each layer, every stage within its budget.

    Args:
        known_s: seconds that are reached elsewhere. None is returned where nothing beats or equals them; with a width,
            where nothing does that was followed.
        gap: the share of its time that a choice may be slower than the best one by, or that what is known must be
            beaten by.
        width: see `solve`.

    Raises:
        TableError: the width is none.
        InfeasibleError: no choice fits, or none of those that the width left.
    """
    return improved(pipeline, known_s=known_s, gap=gap, width=width)[0]


def improved(
    pipeline: Pipeline, *, known_s: float, gap: float = 0.0, width: int | None = None, tried: int = 0
) -> tuple[Solution | None, float]:
    """The same, and seconds that nothing takes less than, but for what is known.

    Args, errors: see `solve_pipeline`. tried: the width that the same was solved with before, by which what is known
        may have been found.
    """
    if width is not None and width < 1:
        raise TableError(f"width: must be at least 1, not {width}")
    smaller, columns = without_worse(pipeline)
    if not len(columns):
        raise _infeasible(pipeline, np.nan)
    bounds = glance(smaller)
    if not bounds.relaxations:
        raise _infeasible(pipeline, bounds.least_bytes)
    best = _start(smaller, bounds, known_s)
    reached_s = known_s if best is None else best.step_s
    left = bounds.columns(reached_s * (1 - gap))
    if not len(left) and np.isinf(reached_s):
        raise _infeasible(pipeline, np.nan)
    found, left_s = _reduced(smaller.only(left), reached_s, gap, width, tried) if len(left) else (None, np.inf)
    if found is not None:
        return replace(found, choice=columns[left[found.choice]]), found.bound_s
    bound_s = max(bounds.least_s, min(reached_s * (1 - gap), left_s))
    return best and replace(best, choice=columns[best.choice], bound_s=min(best.step_s, bound_s)), bound_s


def _reduced(
    pipeline: Pipeline, known_s: float, gap: float, width: int | None, tried: int
) -> tuple[Solution | None, float]:
    """As `_swept`, without places that others can stand in for."""
    smaller, columns = without_worse_places(pipeline)
    found, left_s = _swept(smaller, known_s, gap, width, tried)
    return found and replace(found, choice=columns[found.choice]), left_s


def _swept(
    pipeline: Pipeline, known_s: float, gap: float, width: int | None, tried: int
) -> tuple[Solution | None, float]:
    """The same, of what is left; None if nothing is found that is faster than what is known by more than the gap. And
    seconds that nothing takes less than, of what is faster than that."""
    bounds = bounds_of(pipeline)
    if not bounds.relaxations:
        if np.isinf(known_s):
            raise _infeasible(pipeline, bounds.least_bytes)
        return None, np.inf
    best = _start(pipeline, bounds, known_s)
    reached_s = known_s if best is None else best.step_s
    dropped_s = left_s = np.inf
    left, left_for_s = None, np.nan
    for kept in (*(w for w in _WIDTHS if tried < w and (width is None or w < width)), width):
        wanted_s = reached_s * (1 - gap)
        if gap and wanted_s <= bounds.least_s:
            left_s = bounds.least_s
            break
        if left is None or wanted_s != left_for_s:
            left, left_for_s = bounds.left(bounds.limits_s(wanted_s)), wanted_s
        found = sweep(bounds, left, wanted_s, kept)
        dropped_s, left_s = found.dropped_s, min(found.dropped_s, wanted_s if gap else np.inf)
        if found.choice is not None and found.step_s <= wanted_s * (1 + SLACK):
            best = _solution(pipeline, bounds, found.choice, found.borders)
            reached_s = min(reached_s, best.step_s)
        settled = gap > 0 or kept is None or kept >= _TIES
        if dropped_s > reached_s * (1 - gap) or (settled and reached_s * (1 - gap) <= bounds.least_s * (1 + SLACK)):
            break
    if best is None and np.isinf(known_s):
        if np.isfinite(dropped_s):
            raise InfeasibleError(f"none of the choices that a width of {width} follows fits; widen it", np.nan)
        raise _infeasible(pipeline, np.nan)
    left_s = max(bounds.least_s, left_s)
    return best and replace(best, bound_s=min(best.step_s, left_s)), left_s


def _start(pipeline: Pipeline, bounds: Bounds, known_s: float) -> Solution | None:
    """The best of the choices that bounds came with; None if none fits and is as fast as what is known."""
    found = [_solution(pipeline, bounds, *start) for start in bounds.starts]
    fitting = [one for one in found if (one.bytes <= pipeline.budget).all() and one.step_s <= known_s]
    fitting = [one for one in fitting if np.isfinite(one.step_s)]
    return min(fitting, key=lambda one: one.step_s, default=None)


def _solution(pipeline: Pipeline, bounds: Bounds, choice: np.ndarray, borders: np.ndarray) -> Solution:
    value = worth(pipeline, choice, borders)
    return Solution(choice, borders, value.step_s, value.bytes, bounds.least_s, bounds.multipliers)


def _infeasible(pipeline: Pipeline, least_bytes: float) -> InfeasibleError:
    known = f"; every choice takes at least {least_bytes:.0f}" if np.isfinite(least_bytes) else ""
    budgets = ", ".join(f"{bytes_:.0f}" for bytes_ in pipeline.budget)
    return InfeasibleError(f"no choice fits {budgets} bytes{known}; give more memory or other strategies", least_bytes)
