"""Plans and programs: shorthands made into plans for a program, and plans checked against one."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import TypeVar

import sympy

from galvatron.errors import PlanError, StrategyError, did_you_mean
from galvatron.ir import plan_rules
from galvatron.ir.cluster import Cluster
from galvatron.ir.files import exists
from galvatron.ir.micro_batches import coupling, epilogue_coupling
from galvatron.ir.plan import Plan
from galvatron.ir.program import Form, Layer, LayerKind, Program
from galvatron.ir.skew import SKEW
from galvatron.ir.spmd import chosen_matrices
from galvatron.ir.strategy import Strategy
from galvatron.ir.ties import tied_classes
from galvatron.ir.types import BATCH, BatchSizes, Length
from galvatron.schedules import PATTERN, SCHEDULES, Schedule, default_schedule


@dataclass(frozen=True)
class PlanShorthand:
    """One strategy for all layers, written `pp2/m4/1f1b/dp1-tp2`; a part left out is pp1, m1, and the schedule 1f1b, or
    gpipe where the end of the loss needs all micro-batches.

    The pipeline degree counts ranks: `pp2/m4/interleaved2/dp2` has four stages.
    """

    pipeline_degree: int
    micro_batches: int
    schedule: str | None
    strategy: Strategy

    @staticmethod
    def parse(text: str) -> PlanShorthand:
        """Reads a shorthand.

        Raises:
            StrategyError: an unknown, repeated or misplaced part; the message names it and suggests the nearest known
            one.
        """
        if not text.strip():
            raise StrategyError("the plan is empty; write a plan file, or a shorthand such as 'pp2/m4/1f1b/dp1-tp2'")
        *head, last = [part.strip() for part in text.strip().split("/")]
        if not last:
            raise StrategyError(f"plan {text!r} must end in a strategy, such as 'dp2-tp2', not in '/'")
        found: dict[str, str] = {}
        for part in head:
            kind = next((k for k, pattern in _SHORTHAND.items() if re.fullmatch(pattern, part)), None)
            if kind is None:
                known = [*SCHEDULES, "pp2", "m4"]
                raise StrategyError(f"plan {text!r}: unknown part {part!r}; {did_you_mean(part, known)}")
            if kind in found:
                raise StrategyError(f"plan {text!r}: {kind} is given twice, as {found[kind]!r} and as {part!r}")
            found[kind] = part
        if any(re.fullmatch(pattern, last) for pattern in _SHORTHAND.values()):
            raise StrategyError(f"plan {text!r} must end in a strategy, such as 'dp2-tp2', not in {last!r}")
        try:
            strategy = Strategy.parse(last)
        except StrategyError as error:
            if not head or "schedule" in found:
                raise
            raise StrategyError(f"{error}; schedules, which stand before it, are {', '.join(SCHEDULES)}") from None
        return PlanShorthand(
            int(found.get("pipeline degree", "pp1")[2:]),
            int(found.get("number of micro-batches", "m1")[1:]),
            found.get("schedule"),
            strategy,
        )

    def __str__(self) -> str:
        schedule = f"/{self.schedule}" if self.schedule else ""
        return f"pp{self.pipeline_degree}/m{self.micro_batches}{schedule}/{self.strategy}"

    @property
    def stages(self) -> int:
        """The number of pipeline stages."""
        return self.pipeline_degree * (Schedule.parse(self.schedule).stages_per_rank if self.schedule else 1)

    @property
    def world_size(self) -> int:
        return self.pipeline_degree * self.strategy.devices


_SHORTHAND = {
    "pipeline degree": r"pp[1-9][0-9]{0,8}",
    "number of micro-batches": r"m[1-9][0-9]{0,8}",
    "schedule": PATTERN,
}


def names_plan_file(text: str) -> bool:
    """Whether text that means a plan is the path of a file: by its ending, or because it is there and no shorthand."""
    if text.endswith(".json"):
        return True
    if not exists(text):
        return False
    try:
        PlanShorthand.parse(text)
    except (StrategyError, PlanError):
        return True
    return Path(text).is_file()


def read_plan(text: str) -> Plan | PlanShorthand:
    """What text means by a plan: a file, or one strategy for all layers; not yet checked against anything.

    Raises:
        PlanError, ParseError, StrategyError: it cannot be read.
    """
    return Plan.load(text) if names_plan_file(text) else PlanShorthand.parse(text)


def with_plan(program: Program, plan: Plan | PlanShorthand) -> Program:
    """A costed program under a plan for its cluster and its batch.

    Raises:
        PlanError: the plan does not fit one of them.
    """
    plan = fitted(plan, program, program.required_cluster.world_size, program.batch_size)
    return replace(in_pieces(program, plan), form=Form.PLANNED, plan=plan)


def in_pieces(program: Program, plan: Plan) -> Program:
    """The program for lengths that divide into the pieces that the plan cuts sequences into.

    Raises:
        PlanError: the example's do not.
    """
    pieces = math.lcm(*(strategy.sequence_pieces for strategy in plan.strategies))
    replaced: dict[Length, Length] = {}
    for length in program.lengths if pieces > 1 else ():
        if length.example % pieces:
            raise PlanError(
                f"the plan shards the sequence, for which {length} must divide into {pieces} pieces, but it is "
                f"{length.example} in the example batch: give an example, and batches, of lengths that {pieces} divides"
            )
        replaced[length] = Length(length.name, length.example, length.sizes & BatchSizes(multiple=pieces))
    return _with_lengths(program, replaced) if replaced else program


_T = TypeVar("_T")


def _with_lengths(part: _T, replaced: Mapping[Length, Length]) -> _T:
    """A program, or a part of one, with other lengths in it."""
    if isinstance(part, sympy.Expr):
        return part.xreplace(replaced)  # type: ignore[arg-type,return-value]  # an expression for an expression
    if isinstance(part, tuple):
        return tuple(_with_lengths(item, replaced) for item in part)  # type: ignore[return-value]  # as before
    if not is_dataclass(part) or isinstance(part, type):
        return part
    before = {field.name: getattr(part, field.name) for field in fields(part) if field.init}
    after = {name: _with_lengths(value, replaced) for name, value in before.items()}
    changed = {name: value for name, value in after.items() if value is not before[name] and value != before[name]}
    return replace(part, **changed) if changed else part


def fitted(plan: Plan | PlanShorthand, program: Program, world_size: int, global_batch_size: int) -> Plan:
    """The plan, or what a shorthand means, for a program (clustered to planned), world size and batch.

    Of ties it says what the plan leaves out: kept in parts where all their layers would keep them so, whole otherwise.
    Of a program whose rows choose it says how unevenly they may, by `SKEW` unless the plan does.
    A plan for another batch loses what was predicted for that one.

    Raises:
        PlanError: it does not fit one of them.
    """
    if isinstance(plan, PlanShorthand):
        return resolve(program, plan, global_batch_size, world_size)
    check(plan, program, world_size, global_batch_size)
    plan = replace(plan.for_batch(global_batch_size), skew=skew_of(program, plan.skew))
    return with_ties(plan, tied_layers(program))


def skew_of(program: Program, asked: float | None) -> float | None:
    """How unevenly rows of a program may choose, where `SKEW` is what nobody asked; None where none do."""
    chosen = any(chosen_matrices(cls.graph) for cls in program.classes)
    return (asked or SKEW) if chosen else None


def tied_layers(program: Program) -> dict[str, tuple[int, ...]]:
    """The layers of each tie by position among those that a plan counts; an epilogue is with the last of them."""
    ties = tied_classes(program)
    tie_of = {cls: tie.name for tie in ties for cls in tie.classes}
    found: dict[str, dict[int, None]] = {tie.name: {} for tie in ties}
    layers = program.planned_layers
    for index, layer in [*enumerate(layers), *((len(layers) - 1, layer) for layer in epilogue(program))]:
        if name := tie_of.get(program.class_of[layer.cls].origin_name):
            found[name][index] = None
    return {name: tuple(indices) for name, indices in found.items()}


def with_ties(plan: Plan, tied: Mapping[str, Sequence[int]]) -> Plan:
    """A plan that covers its program, with what it leaves out about ties; see `fitted`."""
    told, strategies = {name: kept and kept.keeping for name, kept in plan.ties}, plan.strategies
    for name in (name for name in tied if name not in told):
        found = {strategies[index].keeping for index in tied[name]}
        told[name] = found.pop() if len(found) == 1 else None
    return replace(plan, ties=tuple((name, told[name]) for name in dict.fromkeys((*tied, *told))))


def without_plan(program: Program, cluster: Cluster, global_batch_size: int) -> Program:
    """A program with costs for a cluster and a batch, whatever was decided about it before forgotten."""
    return replace(
        program,
        form=Form.COSTED,
        batch_size=global_batch_size,
        cluster=cluster,
        candidates=(),
        cuts=(),
        plan=None,
    )


def closings_behind(program: Program) -> dict[str, tuple[Layer, ...]]:
    """The layers that make new values of state when a step ends, by the name of the planned layer behind which all
    that they read of the micro-batches is there; that is not before a parameter of which they say whether it has a
    gradient."""
    made = {n: index for index, layer in enumerate(program.planned_layers) for n in (*layer.results, *layer.state)}
    told = {one.value: one.states for one in program.reached}
    found: dict[str, tuple[Layer, ...]] = {}
    for layer in program.all_layers:
        if layer.kind is LayerKind.CLOSING:
            needed = (*layer.operands, *(name for result in layer.results for name in told.get(result, ())))
            last = program.planned_layers[max(made[name] for name in needed if name in made)].name
            found[last] = (*found.get(last, ()), layer)
    return found


def epilogue(program: Program) -> tuple[Layer, ...]:
    """The layer that runs once per step after all forwards, if there is one."""
    return tuple(layer for layer in program.all_layers if layer.kind is LayerKind.EPILOGUE)


def epilogue_strategy(plan: Plan) -> Strategy:
    """The strategy of an epilogue: that of the last layer, but what it computes is kept."""
    return replace(plan.strategies[-1], recompute="none")


def check_micro_batches(count: int, program: Program) -> None:
    """Checks that so many micro-batches compute what the whole batch does.

    Raises:
        PlanError: names the line that couples samples.
    """
    if count > 1 and (problem := coupling(program)):
        raise PlanError(f"{count} micro-batches do not add up to the whole batch: {problem}; use 1 micro-batch (m1)")


def check_epilogue(schedule: Schedule, degree: int, micro_batches: int, program: Program) -> None:
    """Checks that a schedule, which can run so, lets the end of the loss see all micro-batches.

    Raises:
        PlanError: says what does, and names the line that couples samples.
    """
    if epilogue(program) and (problem := schedule.refusal(degree, micro_batches, epilogue=True)):
        raise PlanError(f"{problem} ({epilogue_coupling(program)})")


def resolve(program: Program, shorthand: PlanShorthand | str, global_batch_size: int, world_size: int) -> Plan:
    """The plan that a shorthand means for a clustered program, with stages balanced by the FLOPs of their layers.

    Raises:
        StrategyError: the shorthand does not parse.
        PlanError: see `check`; also more stages than layers.
    """
    if isinstance(shorthand, str):
        shorthand = PlanShorthand.parse(shorthand)
    if shorthand.world_size != world_size:
        raise PlanError(
            f"plan {str(shorthand)!r} is for {shorthand.world_size} devices, but there are {world_size}; "
            "change its degrees so that their product is the number of devices"
        )
    layers = program.planned_layers
    if shorthand.stages > len(layers):
        raise PlanError(
            f"plan {str(shorthand)!r} has more stages ({shorthand.stages}) than the program has layers ({len(layers)})"
        )
    weights = [_flop(program, layer, global_batch_size) for layer in layers]
    stages = tuple((shorthand.strategy,) * size for size in balanced(weights, shorthand.stages))
    default = default_schedule(shorthand.micro_batches, epilogue=bool(epilogue(program)))
    plan = Plan(
        fingerprint=program.fingerprint,
        global_batch_size=global_batch_size,
        world_size=world_size,
        micro_batches=shorthand.micro_batches,
        schedule=shorthand.schedule or str(default),
        stages=stages,
    )
    return fitted(plan, program, world_size, global_batch_size)


def _flop(program: Program, layer: Layer, batch: int) -> float:
    """Forward and backward FLOPs of a layer; 1 for every layer of a program whose costs nobody annotated."""
    cost = program.class_of[layer.cls].cost
    if cost is None:
        return 1.0
    return float(sympy.sympify(cost.forward_flop + cost.backward_flop).subs({BATCH: batch}))


def balanced(weights: Sequence[float], parts: int) -> list[int]:
    """Sizes of `parts` non-empty contiguous parts that minimise the largest weight sum, then the sum of squares."""
    prefix = [0.0, *itertools.accumulate(weights)]
    count = len(weights)
    best: list[dict[int, tuple[float, float, tuple[int, ...]]]] = [{0: (0.0, 0.0, ())}]
    for part in range(1, parts + 1):
        row: dict[int, tuple[float, float, tuple[int, ...]]] = {}
        for end in range(part, count - (parts - part) + 1):
            row[end] = min(
                (
                    max(largest, prefix[end] - prefix[start]),
                    squares + (prefix[end] - prefix[start]) ** 2,
                    sizes + (end - start,),
                )
                for start, (largest, squares, sizes) in best[-1].items()
                if start < end
            )
        best.append(row)
    return list(best[-1][count][2])


def check(plan: Plan, program: Program, world_size: int, global_batch_size: int) -> None:
    """Checks that a plan can be executed for this program (clustered to planned), world size and batch.

    Raises:
        PlanError: says what does not fit and what to do.
    """
    plan_rules.require(plan_rules.belongs(plan, program.fingerprint))
    if plan.world_size != world_size:
        raise PlanError(
            f"the plan is for {plan.world_size} devices, but there are {world_size}; "
            f"start {plan.world_size} processes, or search a plan for {world_size}"
        )
    plan_rules.require(plan_rules.covers(plan, [len(program.planned_layers)]))
    plan_rules.require(plan_rules.problems(plan))
    plan_rules.require(plan_rules.batch(plan, global_batch_size))
    tied, names = tied_layers(program), [layer.name for layer in program.planned_layers]
    plan_rules.require(plan_rules.ties(with_ties(plan, tied), names, tied))
    check_epilogue(Schedule.parse(plan.schedule), plan.pipeline_degree, plan.micro_batches, program)
    check_micro_batches(plan.micro_batches, program)
    if global_batch_size not in program.batch_sizes:
        raise PlanError(
            f"a batch of {global_batch_size} samples: the model branches on the size of its batch, and was captured "
            f"for batches {program.batch_sizes}; capture it with a batch of this size as example"
        )
