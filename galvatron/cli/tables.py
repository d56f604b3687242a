"""Plans and estimates as tables and JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from galvatron.breakdown import TITLES
from galvatron.cli.output import say, tie_line
from galvatron.ir.plan import runs
from galvatron.printing import cell, wide_console
from galvatron.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from galvatron.breakdown import StageBreakdown
    from galvatron.ir.plan import Plan
    from galvatron.ir.program import Program
    from galvatron.offline import Estimate


def plan_table(plan: Plan, program: Program) -> Table:
    """One row per stage and run of equal strategies: which layers, how, and the peak memory of the devices that hold
    it."""
    step = f"predicted step time: {format_seconds(plan.step_time_s)}" if plan.step_time_s is not None else ""
    lines = [cell(line) for line in (step, tie_line(plan)) if line]
    table = Table(title=cell(plan.title), min_width=len(plan.title), caption=Text("\n").join(lines) if lines else None)
    table.add_column("stage", justify="right")
    table.add_column("layers")
    table.add_column("strategy")
    if plan.peak_bytes is not None:
        table.add_column("peak memory", justify="right")
    holders = plan.holders
    names = iter([layer.name for layer in program.planned_layers])
    for index, stage in enumerate(plan.stages):
        memory = format_bytes(plan.peak_bytes[holders[index]]) if plan.peak_bytes is not None else ""
        for position, (strategy, count) in enumerate(runs(stage)):
            members = [next(names) for _ in range(count)]
            layers = members[0] if count == 1 else f"{members[0]} … {members[-1]} ({count})"
            cells = [str(index), layers, str(strategy), memory] if position == 0 else ["", layers, str(strategy), ""]
            table.add_row(*map(cell, cells[: len(table.columns)]))
        table.add_section()
    return table


def print_plan(plan: Plan, program: Program) -> None:
    """Prints the table of a plan to stdout."""
    Console().print(plan_table(plan, program))


def print_estimate(estimate: Estimate, plan: Plan, program: Program) -> None:
    """Prints the table of a plan with the figures of an estimate to stdout."""
    predicted = dataclasses.replace(
        plan, step_time_s=estimate.step_time_s, peak_bytes=estimate.peak_bytes, skew=estimate.skew
    )
    print_plan(predicted, program)
    if estimate.balanced is not None and estimate.bound_bytes is not None:
        even = estimate.balanced
        say(
            f"where rows choose evenly: step {format_seconds(even.step_time_s)}, "
            f"peak memory {format_bytes(max(even.peak_bytes))}; wherever they go: peak memory at most "
            f"{format_bytes(max(estimate.bound_bytes))}"
        )


def estimate_json(estimate: Estimate, stages: Sequence[StageBreakdown] = ()) -> str:
    """An estimate as a JSON object, field by field, and what its stages are made of, if that is given."""
    parts = {"breakdown": [stage.to_dict() for stage in stages]} if stages else {}
    return json.dumps(dataclasses.asdict(estimate) | parts, indent=2)


def breakdown_tables(stages: Sequence[StageBreakdown]) -> list[Table]:
    """What time and memory are made of: a row for each kind, a column for each stage or run of stages that are alike.
    Kinds that take nothing anywhere are left out."""
    times = [{part.kind: part.exposed_s for part in stage.times} for stage in stages]
    hidden = [{part.kind: part.hidden_s for part in stage.times} for stage in stages]
    tables = [_by_stage("time of a step", times, _share)]
    if any(map(any, (column.values() for column in hidden))):
        tables.append(_by_stage("beside that, hidden", hidden, lambda seconds, _: format_seconds(seconds)))
    return [*tables, _by_stage("memory at its peak", [dict(stage.memory) for stage in stages], _size)]


def _by_stage(title: str, stages: Sequence[Mapping[str, float]], shown: Callable[[float, float], str]) -> Table:
    """Args:
    shown: a number of a stage, given the sum of the stage's numbers.
    """
    kinds = [kind for kind in dict.fromkeys(kind for stage in stages for kind in stage) if any(map(_has(kind), stages))]
    columns: list[list[str]] = []
    for stage in stages:
        total = sum(stage.values())
        columns.append([shown(stage[kind], total) if stage.get(kind) else "" for kind in kinds] + [shown(total, 0.0)])
    table = Table(title=cell(title))
    table.add_column("")
    kept: list[list[str]] = []
    for column, run in groupby(range(len(stages)), key=lambda index: columns[index]):
        first, *others = run
        table.add_column(f"stages {first}–{others[-1]}" if others else f"stage {first}", justify="right", no_wrap=True)
        kept.append(column)
    for kind, *row in zip([*kinds, "together"], *kept, strict=True):
        if kind == "together":
            table.add_section()
        table.add_row(*map(cell, (TITLES.get(kind, kind), *row)))
    return table


def _has(kind: str) -> Callable[[Mapping[str, float]], bool]:
    return lambda stage: bool(stage.get(kind))


def _share(seconds: float, whole_s: float) -> str:
    return f"{format_seconds(seconds)} {seconds / whole_s:6.1%}" if whole_s else f"{format_seconds(seconds)} 100.0%"


def _size(nbytes: float, _: float) -> str:
    return format_bytes(nbytes)


def print_tables(tables: Sequence[Table]) -> None:
    """Prints tables to stdout, each on as much of the width as it needs where that is not a terminal's."""
    wide_console().print(*tables, sep="\n")
