"""The pass `search`: the fastest plan that fits the memory."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from galvatron.costs.estimate import cost_model, pace_of, with_predictions, workspace_bytes
from galvatron.costs.objective import Setting
from galvatron.errors import BudgetError, PassError, PlanError
from galvatron.ir import limits
from galvatron.ir.documents import shown
from galvatron.ir.micro_batches import coupling
from galvatron.ir.plan import Plan
from galvatron.ir.planned import check_epilogue, check_micro_batches, epilogue
from galvatron.ir.program import Form, Program
from galvatron.ir.strategy import Strategy
from galvatron.passes.base import Bytes, Pass
from galvatron.passes.planning.search.fastest import Choice, fastest
from galvatron.passes.planning.search.misses import nearest_miss
from galvatron.passes.planning.search.tables import Stages
from galvatron.passes.planning.tree import divisors
from galvatron.schedules import SCHEDULES, Schedule, default_schedule

MICRO_BATCH_CHOICES = 16
"""At most so many numbers of micro-batches are tried, spread evenly over the divisors of the batch."""

_COUNTS = {
    "memory": limits.SIZE,
    "micro_batches": limits.REPEATS,
    "global_batch": limits.SAMPLES,
    "width": limits.REPEATS,
}
"""Options that are counts, and the most that each may be."""


@dataclass(frozen=True)
class Search(Pass):
    """Chooses pipeline degree, micro-batches, schedule, stage boundaries and one strategy per layer.

    `memory` is the budget per device; None is the cluster's default. `schedule` is the only one that is tried; None is
    1F1B, which never takes longer or more memory than GPipe, but GPipe where the end of the loss needs all
    micro-batches. `micro_batches` is the only number that is tried; None is every one. `global_batch` replaces the
    program's batch size. `whole_ties` keeps all shared parameters whole instead of trying every way to keep them.
    `width` is how many partial choices of a stage are followed behind each layer, and so says how long a search takes;
    where it leaves out none that might be better, no plan is faster than the chosen one, by the cost model, by more
    than a share `gap` of its time.
    """

    name = "search"
    needs, leaves = Form.CANDIDATES, Form.PLANNED

    memory: Bytes | None = None
    schedule: str | None = None
    micro_batches: int | None = None
    global_batch: int | None = None
    whole_ties: bool = False
    gap: float = 1 / 1024
    width: int | None = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        for option, most in _COUNTS.items():
            count = getattr(self, option)
            if count is not None and not 1 <= count <= most:
                option = option.replace("_", "-")
                raise PassError(f"pass {self.name!r}, option {option!r}: must be from 1 to {most}, not {shown(count)}")
        if not 0 <= self.gap < 1:
            raise PassError(f"pass {self.name!r}, option 'gap': must be at least 0 and less than 1, not {self.gap}")
        if self.schedule is not None and not Schedule.parse(self.schedule).phases:
            choices = [name for name in SCHEDULES if Schedule.parse(name).phases]
            raise PassError(
                f"pass {self.name!r}, option 'schedule': the time of {self.schedule} does not add up from its stages, "
                f"so it is not searched; use {' or '.join(choices)}, or give a plan of your own, such as "
                f"pp2/m4/{self.schedule}/dp1"
            )

    def run(self, program: Program) -> Program:
        cluster = program.required_cluster
        if self.global_batch is not None:
            program = replace(program, batch_size=self.global_batch)
        budget_bytes = cluster.default_budget_bytes if self.memory is None else int(self.memory)
        model = cost_model(program)
        choices = [way for choice in self._choices(program) for way in self._ways(model.tied(), *choice)]
        if not choices:
            raise PlanError(
                f"a batch of {program.batch_size} samples cannot be divided over {cluster.world_size} devices "
                "by any strategy; use another global batch"
            )
        found = fastest(model, choices, budget_bytes, gap=self.gap, width=self.width)
        if found is None:
            raise BudgetError(nearest_miss(program, model, choices, budget_bytes))
        setting, stages = found
        plan = with_predictions(_plan(program, setting, stages), program, model)
        return replace(program, form=self.leaves, plan=plan)

    def _choices(self, program: Program) -> Iterator[Choice]:
        """Every pipeline degree, number of micro-batches and schedule that can run; ties are left out."""
        layers = program.planned_layers
        counts = [self.micro_batches] if self.micro_batches is not None else _spread(divisors(program.batch_size))
        ends = bool(epilogue(program))
        if self.micro_batches is not None:
            check_micro_batches(self.micro_batches, program)
            check_epilogue(self._schedule(self.micro_batches, ends), 1, self.micro_batches, program)
        counts = [1] if coupling(program) else counts
        for degree in dict.fromkeys(c.pipeline_degree for c in program.candidates):
            left = {c.cls: c.strategies for c in program.candidates if c.pipeline_degree == degree}
            for count in counts:
                schedule = self._schedule(count, ends)
                pace = pace_of(program, degree)
                size, fixed_bytes = program.batch_size, workspace_bytes(program)
                setting = Setting(size, count, str(schedule), degree, ends, pace=pace, fixed_bytes=fixed_bytes)
                if program.batch_size % count or not schedule.allows(degree, count, epilogue=ends):
                    continue
                candidates = [
                    tuple(s for s in left[layer.cls] if setting.micro_batch % s.degree("dp") == 0) for layer in layers
                ]
                if all(candidates):
                    yield setting, candidates

    def _ways(
        self, tied: Mapping[str, Sequence[int]], setting: Setting, candidates: list[tuple[Strategy, ...]]
    ) -> Iterable[Choice]:
        """A choice for each way to keep ties that is tried."""
        if self.whole_ties:
            return [(replace(setting, ties=tuple((name, None) for name in tied)), candidates)]
        return ways(tied, setting, candidates)

    def _schedule(self, micro_batches: int, ends: bool) -> Schedule:
        return Schedule.parse(self.schedule) if self.schedule else default_schedule(micro_batches, epilogue=ends)


def _spread(numbers: Sequence[int]) -> Sequence[int]:
    if len(numbers) <= MICRO_BATCH_CHOICES:
        return numbers
    step = (len(numbers) - 1) / (MICRO_BATCH_CHOICES - 1)
    return [numbers[round(i * step)] for i in range(MICRO_BATCH_CHOICES)]


def ways(
    tied: Mapping[str, Sequence[int]], setting: Setting, candidates: Sequence[tuple[Strategy, ...]]
) -> Iterator[Choice]:
    """The same choice for each way to keep ties: whole whatever their layers have, or as under one strategy, which then
    all their layers have. So within a choice what a layer costs depends on its own strategy alone.

    Args:
        tied: the layers of each tie, by its name.

    Raises:
        PlanError: there are too many ways to try them all.
    """

    def common(layers: Sequence[int]) -> list[Strategy]:
        found = [dict.fromkeys(s.keeping for s in candidates[index]) for index in layers]
        return [kept for kept in found[0] if kept is not None and all(kept in others for others in found)]

    options: list[list[Strategy | None]] = [[None, *common(layers)] for layers in tied.values()]
    if (count := math.prod(map(len, options))) > limits.WAYS:
        raise PlanError(
            f"{len(tied)} ties of parameters that layers share can be kept in {count} ways, more than the "
            f"{limits.WAYS} that a search tries; keep them whole (search{{whole_ties=true}}), or give a plan of "
            "your own (plan=...)"
        )
    for chosen in itertools.product(*options):
        left = list(candidates)
        for layers, kept in zip(tied.values(), chosen, strict=True):
            for index in layers if kept is not None else ():
                left[index] = tuple(s for s in left[index] if s.keeping == kept)
        if all(left):
            yield replace(setting, ties=tuple(zip(tied, chosen, strict=True))), left


def _plan(program: Program, setting: Setting, stages: Stages) -> Plan:
    return Plan(
        fingerprint=program.fingerprint,
        global_batch_size=program.batch_size,
        world_size=program.required_cluster.world_size,
        micro_batches=setting.micro_batches,
        schedule=setting.schedule,
        ties=setting.ties,
        stages=stages,
    )
