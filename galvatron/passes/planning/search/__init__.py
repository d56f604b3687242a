"""The pass `search`: the fastest plan that fits the memory."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from galvatron.costs.estimate import cost_model, pace_of, with_predictions, workspace_bytes
from galvatron.costs.model import CostModel
from galvatron.costs.objective import Setting
from galvatron.errors import BudgetError, PassError, PlanError
from galvatron.ir import limits
from galvatron.ir.documents import shown
from galvatron.ir.micro_batches import coupling
from galvatron.ir.plan import Plan, Searched
from galvatron.ir.planned import check_epilogue, check_micro_batches, epilogue, skew_of
from galvatron.ir.program import Form, Program
from galvatron.ir.skew import skew_problem
from galvatron.ir.strategy import RECOMPUTE, ROLE_NAMES, Strategy
from galvatron.passes.base import Bytes, Pass
from galvatron.passes.planning.constraints import Constraints
from galvatron.passes.planning.search.columns import Choice
from galvatron.passes.planning.search.fastest import fastest
from galvatron.passes.planning.search.garbage import uncollected
from galvatron.passes.planning.search.least import least_budget
from galvatron.passes.planning.search.misses import check_fixed, nearest_miss
from galvatron.passes.planning.search.tables import Stages, TableBuilder
from galvatron.passes.planning.search.ties import choices_of_ties
from galvatron.passes.planning.search.watch import Stopped, Watch, limited
from galvatron.passes.planning.tree import divisors
from galvatron.schedules import Schedule

MICRO_BATCH_CHOICES = 16
"""At most so many numbers of micro-batches are tried, spread evenly over the divisors of the batch."""

DEFAULT_GAP = 1 / 1024
"""The share of its time that a plan may be slower than the fastest one by, unless told otherwise."""

DEFAULT_WIDTH = 64
"""Partial choices of a stage that are followed behind each layer, unless told otherwise."""

SEARCHED = "1f1b,interleaved2,zbv,gpipe"
"""Schedules that are tried unless told otherwise."""

GPIPE = Schedule.parse("gpipe")

_COUNTS = {
    "memory": limits.SIZE,
    "micro_batches": limits.REPEATS,
    "global_batch": limits.SAMPLES,
    "width": limits.REPEATS,
}
"""Options that are counts, and the most that each may be."""


@dataclass(frozen=True)
class Problem:
    """A program for a batch, what its layers cost, the choices that there are, and the budget of a device."""

    program: Program
    model: CostModel
    choices: list[Choice]
    budget_bytes: int
    skew: float | None

    @cached_property
    def builders(self) -> list[TableBuilder]:
        """The tables of each choice, which all that is asked of the problem shares."""
        return TableBuilder.of(self.model, self.choices)

    def plan(self, setting: Setting, stages: Stages) -> Plan:
        """What a solution means, with its time and memory."""
        plan = Plan(
            fingerprint=self.program.fingerprint,
            global_batch_size=self.program.batch_size,
            world_size=self.program.required_cluster.world_size,
            micro_batches=setting.micro_batches,
            schedule=setting.schedule,
            ties=setting.ties,
            stages=stages,
            skew=self.skew,
        )
        return with_predictions(plan, self.program, self.model)


@dataclass(frozen=True)
class Search(Pass):
    """Chooses pipeline degree, micro-batches, schedule, stage boundaries and one strategy per layer.

    `memory` is the budget per device; None is the cluster's default. `schedule` names those that are tried, with commas
    between them; None is 1F1B, interleaved with two stages per device, and zero-bubble V; GPipe, which never takes less
    time or memory than 1F1B, where the end of the loss needs all micro-batches. `micro_batches` is the only number that
    is tried; None is every one. `global_batch` replaces the program's batch size. `require` and `forbid` are
    constraints on the strategies of layers (`Constraint`), such as `layers.0=tp2` and `zero3`. `objective` is `time`,
    or `memory`: the fastest of the plans that take least memory, to a thousandth. `whole_ties` keeps all shared
    parameters whole instead of trying every way to keep them. `overlap` says whether collectives of layers run beside
    computation where that pays.
    `width` is how many partial choices of a stage are followed behind each layer, and so says how long a search takes;
    where it leaves out none that might be better, no plan is faster than the chosen one, by the cost model, by more
    than a share `gap` of its time. After `time_limit_s` seconds, and when it is interrupted, the best plan so far is
    chosen. The gap in the plan says what is proven of it.
    `skew` is how many rows the rank has that has most, over the mean, where rows go to the ranks of what they choose:
    time and memory are those of that rank; None is `SKEW`.
    """

    name = "search"
    needs, leaves = Form.CANDIDATES, Form.PLANNED

    memory: Bytes | None = None
    schedule: str | None = None
    micro_batches: int | None = None
    global_batch: int | None = None
    require: tuple[str, ...] = ()
    forbid: tuple[str, ...] = ()
    objective: Literal["time", "memory"] = "time"
    time_limit_s: float | None = None
    whole_ties: bool = False
    overlap: bool = True
    gap: float = DEFAULT_GAP
    width: int | None = DEFAULT_WIDTH
    skew: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for option, most in _COUNTS.items():
            count = getattr(self, option)
            if count is not None and not 1 <= count <= most:
                option = option.replace("_", "-")
                raise PassError(f"pass {self.name!r}, option {option!r}: must be from 1 to {most}, not {shown(count)}")
        if not 0 <= self.gap < 1:
            raise PassError(f"pass {self.name!r}, option 'gap': must be at least 0 and less than 1, not {self.gap}")
        if self.time_limit_s is not None and not 0 < self.time_limit_s < math.inf:
            told = f"must be a positive number of seconds, not {self.time_limit_s}"
            raise PassError(f"pass {self.name!r}, option 'time-limit-s': {told}")
        if self.skew is not None and (problem := skew_problem(self.skew)):
            raise PassError(f"pass {self.name!r}, option 'skew': {problem}, not {shown(self.skew)}")
        _ = self.constraints
        _ = self.schedules

    def run(self, program: Program) -> Program:
        problem = self.problem(program)
        program, choices = problem.program, problem.choices
        watch = Watch()
        budget_bytes, complete = self._found(problem, watch)
        if watch.best is None and complete:
            raise BudgetError(nearest_miss(program, problem.builders, budget_bytes))
        if watch.best is None:
            raise PlanError(
                f"the time limit of {self.time_limit_s} s was over before any plan was found, with the costs of "
                f"{len(choices)} combinations of pipeline degree and micro-batches yet to be told; give it longer, or "
                "restrict the search"
            )
        plan = problem.plan(*watch.best)
        bound_s = min(watch.bound_s, watch.best_s)
        found = Searched(self._space(choices), budget_bytes, bound_s, 1 - bound_s / watch.best_s, complete)
        return replace(program, form=self.leaves, plan=replace(plan, overlap=self.overlap, search=found))

    @cached_property
    def schedules(self) -> tuple[Schedule, ...]:
        """Those that are tried."""
        return tuple(Schedule.parse(name.strip()) for name in (self.schedule or SEARCHED).split(","))

    @cached_property
    def constraints(self) -> Constraints:
        """What is asked of the strategies of layers."""
        return Constraints.parse(self.require, self.forbid)

    def problem(self, program: Program) -> Problem:
        """What a search has to choose from.

        Raises:
            PlanError: there is nothing, or nothing fits the budget whatever it is; says why.
        """
        if self.global_batch is not None:
            program = replace(program, batch_size=self.global_batch)
        budget = program.required_cluster.default_budget_bytes if self.memory is None else int(self.memory)
        check_fixed(program, budget)
        skew = skew_of(program, self.skew)
        model = cost_model(program, skew, overlap=self.overlap)
        choices = [own for choice in self._choices(program) for own in self._kept(model.tied(), choice)]
        if not choices:
            raise PlanError(self._nothing_left(program))
        return Problem(program, model, choices, budget, skew)

    def _found(self, problem: Problem, watch: Watch) -> tuple[int, bool]:
        """The budget within which the watch then has the best plan, and whether the search came to its end."""
        builders, budget_bytes = problem.builders, problem.budget_bytes
        try:
            with uncollected(), limited(self.time_limit_s):
                if self.objective == "memory":
                    budget_bytes = least_budget(builders, budget_bytes, watch)
                fastest(builders, budget_bytes, gap=self.gap, width=self.width, watch=watch)
        except Stopped:
            return budget_bytes, False
        except KeyboardInterrupt:
            if watch.best is None:
                raise
            return budget_bytes, False
        return budget_bytes, True

    def _space(self, choices: Sequence[Choice]) -> str:
        """What is searched, in words."""
        settings, every = [choice.setting for choice in choices], set[Strategy]()
        for own in {id(own): own for choice in choices for own in choice.candidates}.values():
            every.update(own)
        roles = [role for role in ROLE_NAMES if any(role in s.roles for s in every)]
        parts = [
            f"pp {_listed(setting.pipeline_degree for setting in settings)}",
            f"{_listed(setting.micro_batches for setting in settings)} micro-batches",
            ", ".join(dict.fromkeys(setting.schedule for setting in settings)),
            f"{len(every)} strategies of {', '.join(roles) or 'one device'}",
            f"ZeRO {_listed(s.zero for s in every)}",
            f"recomputation {', '.join(kind for kind in RECOMPUTE if any(s.recompute == kind for s in every))}",
        ]
        return "; ".join([*parts, *filter(None, [_ties_tried(choices), str(self.constraints)])])

    def _nothing_left(self, program: Program) -> str:
        """Why there is no choice at all."""
        devices = program.required_cluster.world_size
        if not program.candidates:
            too_many = (cut.reason for cut in program.cuts if cut.rule == "stages-need-layers")
            why = next(too_many, f"no pipeline degree that is asked for divides {devices} devices")
            return f"{why}; use another pipeline degree"
        if self.micro_batches is not None and program.batch_size % self.micro_batches:
            return (
                f"a batch of {program.batch_size} samples cannot be cut into {self.micro_batches} micro-batches; use a "
                "number that divides it"
            )
        if self.require or self.forbid:
            for layer in program.planned_layers:
                had = [s for c in program.candidates if c.cls == layer.cls for s in c.strategies]
                if had and not self.constraints.about(layer.name).left(had):
                    return (
                        f"layer {layer.name!r}: none of {len(had)} strategies on {devices} devices is left "
                        f"({self.constraints}); ask for less"
                    )
        if self.schedule is not None and any(True for _ in replace(self, schedule=None)._choices(program)):
            return f"no schedule of {self.schedule} runs with these pipeline degrees and micro-batches; use another one"
        asked = f" with {self.constraints}" if self.require or self.forbid else ""
        return (
            f"a batch of {program.batch_size} samples cannot be divided over {devices} devices by any "
            f"strategy{asked}; use another global batch"
        )

    def _choices(self, program: Program) -> Iterator[Choice]:
        """Every pipeline degree, number of micro-batches and schedule that can run; ties are left out."""
        layers = program.planned_layers
        self.constraints.check([layer.name for layer in layers])
        counts = [self.micro_batches] if self.micro_batches is not None else _spread(divisors(program.batch_size))
        ends = bool(epilogue(program))
        if self.micro_batches is not None:
            check_micro_batches(self.micro_batches, program)
            if len(self.schedules) == 1:
                least = min(2, self.schedules[0].stages_per_rank)
                check_epilogue(self.schedules[0], least, self.micro_batches, program)
        counts = [1] if coupling(program) else counts
        alike = [(layer.cls, self.constraints.about(layer.name)) for layer in layers]
        for degree in dict.fromkeys(c.pipeline_degree for c in program.candidates):
            by_class = {c.cls: c.strategies for c in program.candidates if c.pipeline_degree == degree}
            left = {key: key[1].left(by_class[key[0]]) for key in dict.fromkeys(alike)}
            pace, fixed_bytes = pace_of(program, degree), workspace_bytes(program)
            for count in counts:
                size = program.batch_size // count
                own = {key: tuple(s for s in each if size % s.sample_shards == 0) for key, each in left.items()}
                if program.batch_size % count or not all(own.values()):
                    continue
                for schedule in self.schedules:
                    if schedule == GPIPE and self.schedule is None and not (ends and count > 1):
                        continue  # 1F1B takes no longer, and no more memory
                    if not schedule.allows(degree, count, epilogue=ends) or len(schedule.holders(degree)) > len(layers):
                        continue
                    name, batch = str(schedule), program.batch_size
                    setting = Setting(batch, count, name, degree, ends, pace=pace, fixed_bytes=fixed_bytes)
                    yield Choice(setting, [own[key] for key in alike])

    def _kept(self, tied: Mapping[str, Sequence[int]], choice: Choice) -> Iterable[Choice]:
        """A choice for each tie whole and in parts, where that is tried."""
        if self.whole_ties:
            return [choice._replace(setting=replace(choice.setting, ties=tuple((name, None) for name in tied)))]
        return choices_of_ties(tied, choice.setting, choice.candidates)


def _ties_tried(choices: Sequence[Choice]) -> str:
    """How ties are kept in a search, if not in every way."""
    ties = [kept for choice in choices for _, kept in choice.setting.ties]
    if not ties:
        return ""
    if all(kept is None for kept in ties):
        return "ties kept whole"
    return "ties kept alike" if any(choice.alike for choice in choices) else ""


def _listed(numbers: Iterable[int]) -> str:
    """Different numbers in increasing order, as text: `1, 2, 4`."""
    return ", ".join(map(str, sorted(set(numbers))))


def _spread(numbers: Sequence[int]) -> Sequence[int]:
    if len(numbers) <= MICRO_BATCH_CHOICES:
        return numbers
    step = (len(numbers) - 1) / (MICRO_BATCH_CHOICES - 1)
    return [numbers[round(i * step)] for i in range(MICRO_BATCH_CHOICES)]
