"""When nothing fits: a plan that comes near, and what it lacks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from operator import itemgetter

import numpy as np

from galvatron.costs.estimate import workspace_bytes
from galvatron.costs.objective import Setting, evaluate_plan, peak_bytes
from galvatron.errors import BudgetError
from galvatron.ir.plan import runs
from galvatron.ir.planned import balanced
from galvatron.ir.program import Program
from galvatron.ir.strategy import Strategy
from galvatron.passes.planning.search.tables import Stages, TableBuilder
from galvatron.units import format_bytes


def check_fixed(program: Program, budget_bytes: int) -> None:
    """
    Raises:
        BudgetError: what every plan takes on each device is more than there is, as is known without a search.
    """
    fixed_bytes = workspace_bytes(program)
    if fixed_bytes > budget_bytes:
        raise BudgetError(
            f"no plan fits {format_bytes(budget_bytes)} ({budget_bytes} bytes) per device: what libraries keep of each "
            f"device is {format_bytes(fixed_bytes)} already; give more memory"
        )


_LOOKED_AT = 4
"""So many plans are looked at, those whose devices take least together."""


def nearest_miss(program: Program, builders: Sequence[TableBuilder], budget_bytes: int) -> str:
    """A message that names a plan that comes near the budget, its worst stage and the bytes it is over.

    Looked for among plans of the one strategy with the least memory, and of that with the least in each layer, with
    stages of equal memory.
    """
    thrifty = [
        (sum(weights) / setting.pipeline_degree, setting, strategies, weights)
        for builder in builders
        for setting, strategies, weights in _thrifty(builder)
    ]
    least: tuple[float, str] | None = None
    for _, setting, strategies, weights in sorted(thrifty, key=itemgetter(0))[:_LOOKED_AT]:
        stages = _in_stages(strategies, balanced(weights, len(setting.holders)))
        peaks = list(peak_bytes(setting, evaluate_plan(builders[0].model, setting, stages)[1]))
        over = max(peaks) - budget_bytes
        if least is None or over < least[0]:
            least = over, _message(program, setting, stages, peaks, budget_bytes)
    assert least is not None
    return least[1]


def _thrifty(builder: TableBuilder) -> Iterator[tuple[Setting, tuple[Strategy, ...], list[float]]]:
    """Strategies of all layers with little memory, with each way to keep ties, and the bytes of each layer."""
    columns, needed = builder.columns, np.full(builder.allowed.shape, np.inf)
    for index, row in enumerate(needed):
        own, cost = columns.cost(index)
        if cost is not None:
            row[own] = cost.state_bytes + builder.setting.in_flight[0] * cost.saved_bytes
    for way in builder.ways():
        left, layers = np.where(way.allowed, needed, np.inf), np.arange(len(needed))
        together, choices = left.sum(axis=0), [left.argmin(axis=1)]
        if np.isfinite(together.min()):
            choices.insert(0, np.full(len(left), together.argmin()))
        for choice in choices:
            strategies = tuple(columns.places.strategies[column] for column in choice)
            yield way.setting, strategies, left[layers, choice].tolist()


def _in_stages(strategies: tuple[Strategy, ...], sizes: Sequence[int]) -> Stages:
    ends = list(accumulate(sizes, initial=0))
    return tuple(strategies[begin:end] for begin, end in pairwise(ends))


def _message(
    program: Program,
    setting: Setting,
    stages: Sequence[tuple[Strategy, ...]],
    peaks: list[int],
    budget_bytes: int,
) -> str:
    worst = max(range(len(peaks)), key=lambda i: peaks[i])
    names = [layer.name for layer in program.planned_layers]
    own = [stage for stage, holder in enumerate(setting.holders) if holder == worst]
    begin = sum(len(stage) for stage in stages[: own[0]])
    members = names[begin : begin + len(stages[own[0]])]
    strategies = ", ".join(f"{s} ×{n}" for s, n in runs(tuple(s for stage in own for s in stages[stage])))
    over = peaks[worst] - budget_bytes
    return (
        f"no plan fits {format_bytes(budget_bytes)} ({budget_bytes} bytes) per device; one that comes near, "
        f"pp{setting.pipeline_degree}/m{setting.micro_batches}/{setting.schedule}, needs {format_bytes(peaks[worst])} "
        f"in stage {own[0]} ({members[0]} … {members[-1]}: {strategies}), {over} bytes ({format_bytes(over)}) over; "
        f"give more memory or devices, or a smaller global batch{_untried(program)}"
    )


def _untried(program: Program) -> str:
    """What saves memory and was not among the candidates."""
    tried = [strategy for candidates in program.candidates for strategy in candidates.strategies]
    kinds = (
        ("ZeRO (such as dp2-zero3)", any(s.zero for s in tried)),
        ("recomputation (such as dp2-recompute)", any(s.recompute != "none" for s in tried)),
    )
    missing = " or ".join(kind for kind, found in kinds if not found)
    return f", or a plan of your own with what was not searched: {missing}" if missing else ""
