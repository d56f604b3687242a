"""When nothing fits: a plan that comes near, and what it lacks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from galvatron.costs.estimate import workspace_bytes
from galvatron.costs.model import CostModel
from galvatron.costs.objective import Setting, evaluate_plan, peak_bytes
from galvatron.errors import BudgetError
from galvatron.ir.plan import runs
from galvatron.ir.planned import balanced
from galvatron.ir.program import Program
from galvatron.ir.strategy import Strategy
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


def nearest_miss(
    program: Program,
    model: CostModel,
    choices: Sequence[tuple[Setting, list[tuple[Strategy, ...]]]],
    budget_bytes: int,
) -> str:
    """A message that names a plan that comes near the budget, its worst stage and the bytes it is over.

    Looked for among plans of the one strategy with the least memory, and of that with the least in each layer, with
    stages of equal memory.
    """
    least: tuple[float, str] | None = None
    for setting, candidates in choices:
        for strategies in _thrifty(model, setting, candidates):
            stages = _stages_of_equal_memory(model, setting, strategies)
            peaks = list(peak_bytes(setting, evaluate_plan(model, setting, stages)[1]))
            over = max(peaks) - budget_bytes
            if least is None or over < least[0]:
                least = over, _message(program, setting, stages, peaks, budget_bytes)
    assert least is not None
    return least[1]


def _thrifty(
    model: CostModel, setting: Setting, candidates: Sequence[tuple[Strategy, ...]]
) -> Iterator[tuple[Strategy, ...]]:
    kinds = model.kinds()
    alike = [kinds.index(kind) for kind in kinds]
    needed = {
        index: {s: _memory_bytes(model, setting, index, s) for s in candidates[index]} for index in dict.fromkeys(alike)
    }
    common = [s for s in candidates[0] if all(s in options for options in needed.values())]
    if common:
        yield (min(common, key=lambda s: sum(needed[index][s] for index in alike)),) * len(candidates)
    yield tuple(min(needed[index], key=needed[index].__getitem__) for index in alike)


def _memory_bytes(model: CostModel, setting: Setting, index: int, strategy: Strategy) -> float:
    cost = model.layer(index, strategy, setting.micro_batch, setting.ties)
    return cost.state_bytes + setting.in_flight[0] * cost.saved_bytes


def _stages_of_equal_memory(
    model: CostModel, setting: Setting, strategies: tuple[Strategy, ...]
) -> tuple[tuple[Strategy, ...], ...]:
    weights = [_memory_bytes(model, setting, i, s) for i, s in enumerate(strategies)]
    rest, stages = list(strategies), []
    for size in balanced(weights, len(setting.holders)):
        stages.append(tuple(rest[:size]))
        rest = rest[size:]
    return tuple(stages)


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
