"""Plans and estimates as tables and JSON."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from galvatron.cli.output import tie_line
from galvatron.ir.plan import runs
from galvatron.ir.planned import planned_layers
from galvatron.printing import cell
from galvatron.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from galvatron.api import Estimate
    from galvatron.ir.plan import Plan
    from galvatron.ir.program import Program


def plan_table(plan: Plan, program: Program) -> Table:
    """One row per stage and run of equal strategies: which layers, how, and the peak memory of the devices that hold
    it."""
    where = f" on {plan.cluster}" if plan.cluster else ""
    title = (
        f"{plan.world_size} devices{where}: pp{plan.pipeline_degree}, {plan.micro_batches} micro-batches, "
        f"{plan.schedule}, global batch {plan.global_batch_size}"
    )
    step = f"predicted step time: {format_seconds(plan.step_time_s)}" if plan.step_time_s is not None else ""
    lines = [cell(line) for line in (step, tie_line(plan)) if line]
    table = Table(title=cell(title), caption=Text("\n").join(lines) if lines else None)
    table.add_column("stage", justify="right")
    table.add_column("layers")
    table.add_column("strategy")
    if plan.peak_bytes is not None:
        table.add_column("peak memory", justify="right")
    holders = plan.holders
    names = iter([layer.name for layer in planned_layers(program)])
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
    predicted = dataclasses.replace(plan, step_time_s=estimate.step_time_s, peak_bytes=estimate.peak_bytes)
    print_plan(predicted, program)


def estimate_json(estimate: Estimate) -> str:
    """An estimate as a JSON object, field by field."""
    return json.dumps(dataclasses.asdict(estimate), indent=2)
