"""What a plan may be, by itself: the verifier, the reader of plan documents and the API ask here, and nowhere else.

A rule yields what is wrong: which line of the plan (a locus, as in `galvatron.ir.text.lines`), and what to change.
Each relies on those above it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from galvatron.errors import PlanError, did_you_mean
from galvatron.ir import limits
from galvatron.ir.documents import shown
from galvatron.ir.skew import skew_problem
from galvatron.schedules import Schedule

if TYPE_CHECKING:
    from galvatron.ir.plan import Plan

Problem = tuple[tuple[Hashable, ...], str]

_MOST = {"global_batch_size": limits.SAMPLES, "world_size": limits.DEVICES, "micro_batches": limits.REPEATS}


def numbers(plan: Plan) -> Iterator[Problem]:
    """Counts are positive and predictions not negative, none is beyond `limits`."""
    for name, most in _MOST.items():
        count = getattr(plan, name)
        if count < 1:
            yield ("plan", name), f"plan field {name!r} must be a whole number of at least 1, not {shown(count)}"
        elif count > most:
            yield ("plan", name), f"plan field {name!r} must be at most {most}, not {shown(count)}"
    if plan.step_time_s is not None and plan.step_time_s < 0:
        yield ("plan", "step_time_s"), f"plan field 'step_time_s' must not be negative, as {shown(plan.step_time_s)} is"
    for size in plan.peak_bytes or ():
        if not 0 <= size <= limits.SIZE:
            yield ("plan", "peak_bytes"), f"plan field 'peak_bytes' must have sizes in bytes, not {shown(size)}"
    if plan.skew is not None and (problem := skew_problem(plan.skew)):
        yield ("plan", "skew"), f"plan field 'skew' {problem}; not {shown(plan.skew)}"
    search = plan.search
    if not (0 <= search.gap <= 1 and 0 <= search.budget_bytes <= limits.SIZE and search.bound_s >= 0):
        yield ("plan",), "plan field 'search' must have a budget and a bound that are not negative, and a gap up to 1"


def schedule(plan: Plan, *, epilogue: bool = False) -> Iterator[Problem]:
    """The schedule is known and can run the stages and micro-batches, and an epilogue if there is one."""
    try:
        named = Schedule.parse(plan.schedule)
    except PlanError as error:
        yield ("plan", "schedule"), f"plan field 'schedule': {error}"
        return
    count = len(plan.stages)
    if not count:
        yield ("plan",), "the plan has no stages"
    elif count % named.stages_per_rank:
        yield (
            ("plan", "schedule"),
            f"schedule {named} gives every pipeline rank {named.stages_per_rank} stages; the plan has {count}",
        )
    else:
        try:
            named.check(plan.pipeline_degree, plan.micro_batches, epilogue=epilogue)
        except PlanError as error:
            yield ("plan", "schedule"), str(error)


def peaks(plan: Plan) -> Iterator[Problem]:
    """A predicted peak for each pipeline rank, or none."""
    if plan.peak_bytes is not None and len(plan.peak_bytes) != plan.pipeline_degree:
        ranks = f"{len(plan.peak_bytes)} entries for {plan.pipeline_degree} pipeline ranks"
        yield ("plan", "peak_bytes"), f"plan field 'peak_bytes' has {ranks}"


def layers(plan: Plan) -> Iterator[Problem]:
    """No stage is empty."""
    for index, stage in enumerate(plan.stages):
        if not stage:
            yield ("plan", "stage", index), f"stage {index} of the plan has no layers"


def devices(plan: Plan) -> Iterator[Problem]:
    """Pipeline degree times the devices of every strategy is the world size."""
    degree = plan.pipeline_degree
    if plan.world_size % degree:
        told = f"{plan.world_size} devices cannot be divided into {degree} pipeline ranks"
        yield ("plan", "world_size"), told
        return
    for index, stage in enumerate(plan.stages):
        for strategy in dict.fromkeys(stage):
            if strategy.devices != plan.devices_per_stage:
                told = (
                    f"stage {index}: strategy {str(strategy)!r} is for {strategy.devices} devices, but "
                    f"{plan.world_size} devices in {degree} pipeline ranks are {plan.devices_per_stage} each"
                )
                yield ("plan", "stage", index), told


def batch(plan: Plan, global_batch_size: int) -> Iterator[Problem]:
    """A batch divides into micro-batches, and a micro-batch into data-parallel shards."""
    for index, stage in enumerate(plan.stages):
        for strategy in dict.fromkeys(stage):
            parts = plan.micro_batches * strategy.sample_shards
            if global_batch_size % parts:
                told = (
                    f"a batch of {global_batch_size} samples cannot be divided into {plan.micro_batches} micro-batches "
                    f"of {strategy.sample_shards} data-parallel shards (strategy {str(strategy)!r}); use a batch "
                    f"divisible by {parts}, or another number of micro-batches"
                )
                yield ("plan", "stage", index), told


def belongs(plan: Plan, fingerprint: str) -> Iterator[Problem]:
    """The plan was made for the program with a fingerprint."""
    if plan.fingerprint != fingerprint:
        told = (
            f"the plan is for another model or batch signature (fingerprint {plan.fingerprint}, this program has "
            f"{fingerprint}); search a plan for this program"
        )
        yield ("plan", "fingerprint"), told


def covers(plan: Plan, counts: list[int]) -> Iterator[Problem]:
    """The plan has one strategy for each of so many layers: in each stage if there is a count for each, else in all."""
    found = [len(stage) for stage in plan.stages] if len(counts) > 1 else [len(plan.strategies)]
    if found != counts:
        has, wanted = (" + ".join(map(str, each)) for each in (found, counts))
        told = f"the plan has strategies for {has} layers, but the program has {wanted}; search a plan for this program"
        yield ("plan",), told


def ties(plan: Plan, names: Sequence[str], tied: Mapping[str, Sequence[int]]) -> Iterator[Problem]:
    """The plan says once of every tie how it is kept, and in parts only as all its layers would keep it.

    Args:
        names: of the layers.
        tied: of each tie its layers, by position.
    """
    given = Counter(name for name, _ in plan.ties)
    for name, times in given.items():
        if name not in tied:
            known = did_you_mean(name, tied) if tied else "no layers of the program share parameters"
            yield ("plan", "tie", name), f"there is no tie {name!r} of parameters that layers share; {known}"
        elif times > 1:
            yield ("plan", "tie", name), f"the plan says twice how the tie {name!r} is kept"
    if missing := [name for name in tied if name not in given]:
        told = f"the plan does not say how the tie {missing[0]!r} is kept; such as: tie {missing[0]} = whole"
        yield ("plan",), told
    strategies = plan.strategies
    for name, kept in plan.ties:
        odd = next((i for i in tied.get(name, ()) if kept is not None and strategies[i].keeping != kept), None)
        if odd is not None:
            yield (
                ("plan", "tie", name),
                f"the tie {name!r} cannot be kept as under {kept}: layer {names[odd]} has {strategies[odd]}; keep it "
                "whole, or give all layers of the classes that share it these axes and this ZeRO level",
            )


def problems(plan: Plan) -> Iterator[Problem]:
    """Everything that is wrong with a plan by itself; after the first, what follows may follow from it."""
    for rule in (numbers, schedule, layers, peaks, devices):
        yield from rule(plan)
    yield from batch(plan, plan.global_batch_size)


def require(found: Iterable[Problem]) -> None:
    """Raises the first problem.

    Raises:
        PlanError: there is one.
    """
    for _, told in found:
        raise PlanError(told)
