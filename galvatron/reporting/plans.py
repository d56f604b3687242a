"""What a report says of a plan: how fast it is and what limits it, its layers, and what its stages take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from galvatron.answers.explain import NEAR, class_times
from galvatron.answers.question import Question
from galvatron.breakdown import CriticalRank, StageBreakdown, breakdown
from galvatron.costs.estimate import estimate_plan, setting_of
from galvatron.costs.memory import KINDS, Memory
from galvatron.costs.objective import LayerReport, Setting, StageReport, memory_of_ranks, peak_bytes
from galvatron.costs.steps import RankMemory, Step, memory_over, step_of
from galvatron.ir.plan import Plan, kept_text
from galvatron.ir.program import Program
from galvatron.ir.strategy import Strategy

TRAITS = ("dp", "ep", "tp", "ulysses", "cp", "zero", "recompute")
"""What of a strategy is shown apart."""


@dataclass(frozen=True)
class Estimated:
    """A plan that a question is about, with all that the cost model says of it."""

    question: Question
    name: str

    @property
    def plan(self) -> Plan:
        """The plan."""
        return self.question.plan

    @property
    def program(self) -> Program:
        """The program, for the cluster that the question is about."""
        return self.question.program

    @cached_property
    def setting(self) -> Setting:
        """What it says besides its stages."""
        return setting_of(self.program, self.plan)

    @cached_property
    def estimate(self) -> tuple[float, tuple[StageReport, ...]]:
        """Seconds of a step, and its stages."""
        return estimate_plan(self.program, self.plan)

    @property
    def stages(self) -> tuple[StageReport, ...]:
        """Its stages."""
        return self.estimate[1]

    @property
    def predicted(self) -> Plan:
        """The plan with its cluster and its figures."""
        where, peaks = str(self.program.required_cluster), peak_bytes(self.setting, self.stages)
        return replace(self.plan, cluster=where, step_time_s=self.estimate[0], peak_bytes=peaks)

    @cached_property
    def parts(self) -> tuple[StageBreakdown, ...]:
        """What its stages are made of."""
        return breakdown(*self.estimate, self.plan.micro_batches)

    @cached_property
    def step(self) -> Step:
        """Its step, played through."""
        return step_of(self.setting, self.stages, self.estimate[0])

    @cached_property
    def memory(self) -> tuple[RankMemory, ...]:
        """What each rank has in use over a step."""
        return memory_over(self.step, self.setting, self.stages)


def plan_data(own: Estimated) -> dict[str, Any]:
    """The figures of a plan, for JSON."""
    plan, (step_s, stages) = own.plan, own.estimate
    memory = memory_of_ranks(own.setting, stages)
    searched = asdict(plan.search) if plan.search.space else None
    return {
        "name": own.name,
        "text": f"pp{plan.pipeline_degree}/m{plan.micro_batches}/{plan.schedule}",
        "cluster": str(own.question.program.required_cluster),
        "devices": plan.world_size,
        "pipeline_degree": plan.pipeline_degree,
        "micro_batches": plan.micro_batches,
        "schedule": plan.schedule,
        "batch": plan.global_batch_size,
        "step_s": step_s,
        "budget_bytes": own.question.memory_bytes,
        "peak_bytes": [one.total for one in memory],
        "memory": [_bytes(one) for one in memory],
        "ties": [[name, kept_text(kept)] for name, kept in plan.ties],
        "search": searched,
        "limit": _limit(own, [one.total for one in memory]),
        "stages": [
            {
                "rank": holder,
                "layers": len(stage.layers),
                "times": [[part.kind, part.exposed_s, part.hidden_s] for part in parts.times],
            }
            for holder, stage, parts in zip(own.setting.holders, stages, own.parts, strict=True)
        ],
        "classes": [asdict(one) for one in class_times(own.question.program, plan, stages)],
        **_layers(own),
    }


def _limit(own: Estimated, peaks: Sequence[float]) -> dict[str, Any]:
    """The rank that waits least and what takes most of its step, the rank whose memory is fullest, and whether
    that is what limits the plan."""
    critical = CriticalRank.of(*own.estimate, own.setting)
    kind, seconds = critical.most
    fullest = max(range(len(peaks)), key=peaks.__getitem__)
    return {
        "memory": peaks[fullest] >= NEAR * own.question.memory_bytes,
        "rank": critical.rank,
        "kind": kind,
        "share": seconds / own.estimate[0],
        "fullest_rank": fullest,
    }


def _layers(own: Estimated) -> dict[str, Any]:
    """The strategies, and of each layer its strategy, stage and figures; layers that are alike have those in common."""
    names = [layer.cls for layer in own.question.program.planned_layers]
    strategies: dict[Strategy, int] = {}
    kinds: dict[tuple[Any, ...], int] = {}
    layers: list[list[int]] = []
    for stage, report in enumerate(own.stages):
        for layer in report.layers:
            strategy = strategies.setdefault(layer.strategy, len(strategies))
            figures = tuple(_figures(layer, own.plan.micro_batches).values())
            kind = kinds.setdefault((names[layer.index], strategy, *figures), len(kinds))
            layers.append([stage, strategy, kind])
    return {
        "strategies": [{"text": str(strategy), "traits": _traits(strategy)} for strategy in strategies],
        "kinds": [dict(zip(("cls", "strategy", *FIGURES), kind, strict=True)) for kind in kinds],
        "layers": layers,
    }


FIGURES = ("compute_s", "communication_s", "once_s", "state_bytes", "saved_bytes")
"""Of a layer: seconds of a step, and bytes of a device, those saved of one micro-batch."""


def _figures(layer: LayerReport, micro_batches: int) -> dict[str, float]:
    cost = layer.cost
    found = (
        micro_batches * (cost.compute_s + cost.host_s),
        micro_batches * (cost.communication_s + layer.conversion_s),
        cost.once_s + cost.sync_s + cost.publish_s,
        cost.state_bytes,
        cost.saved_bytes,
    )
    return dict(zip(FIGURES, map(float, found), strict=True))


def _traits(strategy: Strategy) -> list[int | str]:
    """A number for each trait, `recompute` as it is written; `tp` with a sharded sequence is text as well."""
    found: dict[str, int | str] = {role: strategy.degree(role) for role in TRAITS}
    if strategy.degree("tp+sp") > 1:
        found["tp"] = f"{strategy.degree('tp+sp')}+sp"
    return list((found | {"zero": strategy.zero, "recompute": strategy.recompute}).values())


def _bytes(memory: Memory) -> list[float]:
    return [getattr(memory, kind) for kind in KINDS]
