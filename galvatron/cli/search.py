"""`galvatron search`: the plan with the shortest predicted step that fits the memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from galvatron.cli.inputs import ClusterText, Inductor, Json, ProgramFile, read_cluster, read_program
from galvatron.cli.optimizers import OptimizerText, read_optimizer
from galvatron.cli.output import as_json, file_to_write, log_on_stderr, say, write_file
from galvatron.cli.progress import shown_progress
from galvatron.cli.space import (
    Forbid,
    MaxTp,
    MicroBatches,
    NoOverlap,
    Objective,
    PipelineDegree,
    Recompute,
    Require,
    Roles,
    ScheduleName,
    Skew,
    TimeLimit,
    Width,
    Zero,
    read_batches,
    search_options,
)
from galvatron.errors import BudgetError, GalvatronError

if TYPE_CHECKING:
    from galvatron.ir.cluster import Cluster
    from galvatron.ir.plan import Plan
    from galvatron.ir.program import Program
    from galvatron.runtime.optimizers import OptimizerFactory
    from galvatron.search_options import SearchOptions


def command(
    program_file: ProgramFile,
    cluster: ClusterText,
    global_batch: Annotated[
        str,
        typer.Option(
            "--global-batch", metavar="N|N..M", help="Samples per step, or a range in which to find most throughput."
        ),
    ],
    memory: Annotated[
        str | None,
        typer.Option("--memory", metavar="BYTES|A..B", help="Budget per device, such as 36GiB, or a range of budgets."),
    ] = None,
    require: Require = None,
    forbid: Forbid = None,
    max_tp: MaxTp = None,
    pp: PipelineDegree = None,
    schedule: ScheduleName = None,
    micro_batches: MicroBatches = None,
    roles: Roles = None,
    zero: Zero = None,
    recompute: Recompute = None,
    objective: Objective = "time",
    width: Width = None,
    skew: Skew = None,
    time_limit: TimeLimit = None,
    no_overlap: NoOverlap = False,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="PLAN.json", parser=file_to_write, help="Where it goes.")
    ] = None,
    inductor: Inductor = False,
    optimizer: OptimizerText = None,
    cached: Annotated[bool, typer.Option("--cache/--no-cache", help="Take a plan that was searched before.")] = True,
    json: Json = False,
) -> None:
    """Search the best plan for a program on a cluster."""
    from galvatron.answers.curve import read_budgets

    budgets = () if memory is None else read_budgets(memory)
    batches = read_batches(global_batch)
    options = search_options(
        require,
        forbid,
        max_tp,
        pp,
        schedule,
        micro_batches,
        roles,
        zero,
        recompute,
        objective,
        width,
        skew,
        time_limit,
        no_overlap,
    )
    machines = read_cluster(cluster)
    program = read_program(program_file)
    trains = read_optimizer(optimizer)

    def best(budget: int | None) -> Plan:
        from galvatron import offline
        from galvatron.ir.files import cache_directory

        folder = cache_directory() if cached else None
        return offline.search(
            program,
            machines,
            memory=budget,
            global_batch_size=batches,
            search=options,
            inductor=inductor,
            optimizer=trains,
            cache_dir=folder,
        )

    if len(budgets) > 1:
        if output is not None:
            raise GalvatronError("-o is for one plan: give one budget with it")
        _print_curve(budgets, best, json)
        return
    budget = budgets[0] if budgets else None
    try:
        with shown_progress(), log_on_stderr():
            plan = best(budget)
    except BudgetError as error:
        if isinstance(batches, tuple):
            raise
        raise BudgetError(f"{error}{_ways_out(program, machines, batches, budget, options, trains)}") from None
    if output is not None:
        write_file(output, plan.to_json())
    if json:
        print(plan.to_json(), end="")
    else:
        from galvatron.cli.tables import print_plan

        print_plan(plan, program)


def _print_curve(budgets: tuple[int, ...], best: Callable[[int], Plan], json: bool) -> None:
    from galvatron.answers.curve import curve
    from galvatron.cli.answers import curve_text

    with shown_progress():
        found = curve(budgets, best)
    told = [
        {"memory_bytes": budget, "step_time_s": plan and plan.step_time_s, "plan": plan and str(plan)}
        for budget, plan in found
    ]
    say(as_json(told) if json else curve_text(told))


def _ways_out(
    program: Program,
    machines: Cluster,
    batch: int,
    budget: int | None,
    options: SearchOptions,
    optimizer: OptimizerFactory | None,
) -> str:
    """What to change so that a plan fits, each tried."""
    from galvatron.answers.ways_out import ways_out
    from galvatron.forms import with_costs

    with shown_progress():
        costed = with_costs(program, machines, batch, optimizer=optimizer)
        found = ways_out(costed, machines.default_budget_bytes if budget is None else budget, options)
    return "".join(f"\n  fits {way}" for way in found)
