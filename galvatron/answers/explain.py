"""Why a plan takes as long as it does: what its step is made of, what limits it, and what would shorten it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from galvatron.answers.question import Question, seconds_of
from galvatron.breakdown import CriticalRank
from galvatron.costs.estimate import estimate_plan, setting_of
from galvatron.costs.objective import Setting, StageReport, memory_of_ranks
from galvatron.errors import PlanError
from galvatron.ir.plan import Plan
from galvatron.ir.program import Program
from galvatron.solver import InfeasibleError, glance, solve_pipeline

GIB = 2**30

NEAR = 0.98
"""A stage that uses so much of its budget is taken to be limited by it."""


@dataclass(frozen=True)
class ClassTime:
    """Where a step goes: seconds of all layers of a class on one device each, per step.

    Attributes:
        communication_s: collectives that are waited for, and conversions between layouts.
        once_s: sums of gradients, gathers of new values, and the optimizer.
    """

    cls: str
    layers: int
    compute_s: float
    communication_s: float
    once_s: float


@dataclass(frozen=True)
class Bought:
    """What more of something would buy.

    Attributes:
        told_s: seconds less, as the plan tells it: by the multipliers of memory, at most the whole step, or with the
            same plan.
        step_time_s: of the plan that a search finds with it; None if it was not searched.
    """

    told_s: float
    step_time_s: float | None


@dataclass(frozen=True)
class Explanation:
    """Why a plan takes as long as it does.

    Attributes:
        critical_rank: the pipeline rank that waits least for others.
        critical_parts: seconds of its step by kind.
        classes: where the seconds of all stages go.
        binding: what limits the plan: `memory of pipeline rank 1`, or the kind that takes most of the critical rank's
            time.
        used: of its budget, by pipeline rank.
        multipliers: seconds that one more byte of each pipeline rank would save, if strategies could be mixed; None
            where the schedule has no phases to search.
        best_s: of the plan that a search finds.
    """

    step_time_s: float
    best_s: float
    critical_rank: int
    critical_parts: tuple[tuple[str, float], ...]
    classes: tuple[ClassTime, ...]
    binding: str
    used: tuple[float, ...]
    multipliers: tuple[float, ...] | None
    one_more_gib: Bought
    twice_the_bandwidth: Bought

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"critical_parts": dict(self.critical_parts)}


def explain(question: Question) -> Explanation:
    """Why the plan of a question takes as long as it does, and what would shorten its step, checked by searching."""
    program, plan = question.program, question.plan
    best_s = seconds_of(question.best)  # if nothing fits, a search says so best
    seconds, stages = estimate_plan(program, plan)
    setting = setting_of(program, plan)
    critical = CriticalRank.of(seconds, stages, setting)
    used = [memory.total / question.memory_bytes for memory in memory_of_ranks(setting, stages)]
    prices = memory_prices(question, setting)
    told_s = 0.0 if prices is None else min(seconds, float(np.sum(prices)) * GIB)
    faster = program.required_cluster.with_twice_the_bandwidth()
    return Explanation(
        step_time_s=seconds,
        best_s=best_s,
        critical_rank=critical.rank,
        critical_parts=critical.times,
        classes=class_times(program, plan, stages),
        binding=_binding(used, prices, critical),
        used=tuple(used),
        multipliers=prices,
        one_more_gib=Bought(told_s, _seconds(question, memory_bytes=question.memory_bytes + GIB)),
        twice_the_bandwidth=Bought(
            seconds - estimate_plan(replace(program, cluster=faster), plan)[0], _seconds(question, cluster=faster)
        ),
    )


def memory_prices(question: Question, setting: Setting) -> tuple[float, ...] | None:
    """The multipliers of the budgets of a setting's pipeline ranks, with its best plan; None if it is not searched."""
    problem = question.problem
    wanted = (setting.pipeline_degree, setting.micro_batches, setting.schedule, setting.ties)
    for builder in itertools.chain.from_iterable(builder.ways() for builder in problem.builders):
        own = builder.setting
        if (own.pipeline_degree, own.micro_batches, own.schedule, own.ties) != wanted:
            continue
        known_s = seconds_of(replace(question.plan, step_time_s=estimate_plan(question.program, question.plan)[0]))
        bounds = glance(builder.free(problem.budget_bytes))
        left = bounds.by_layer(known_s * (1 + 1e-9)) if bounds.relaxations else np.zeros(0, dtype=bool)
        if not left.any():
            return None
        try:
            found = solve_pipeline(builder.tables(problem.budget_bytes, left).pipeline, width=question.width)
        except InfeasibleError:  # of what is followed
            return None
        return None if found is None else tuple(map(float, found.multipliers))
    return None


def class_times(program: Program, plan: Plan, stages: Sequence[StageReport]) -> tuple[ClassTime, ...]:
    """Where the seconds of all stages go, by layer class, those first that take longest."""
    times: dict[str, list[float]] = {}
    layers = program.planned_layers
    for stage in stages:
        for report in stage.layers:
            own, cost = times.setdefault(layers[report.index].cls, [0.0] * 4), report.cost
            own[0] += 1
            own[1] += plan.micro_batches * cost.compute_s
            own[2] += plan.micro_batches * (cost.communication_s + report.conversion_s)
            own[3] += cost.once_s + cost.sync_s + cost.publish_s
    found = [ClassTime(cls, int(count), *rest) for cls, (count, *rest) in times.items()]
    return tuple(sorted(found, key=lambda own: -(own.compute_s + own.communication_s + own.once_s)))


def _binding(used: Sequence[float], prices: Sequence[float] | None, critical: CriticalRank) -> str:
    fullest = max(range(len(used)), key=used.__getitem__)
    if used[fullest] >= NEAR or (prices is not None and max(prices) > 0):
        return f"memory of pipeline rank {fullest}"
    return critical.most[0]


def _seconds(question: Question, **changes: Any) -> float | None:
    try:
        return seconds_of(question.searched(**changes))
    except PlanError:
        return None
