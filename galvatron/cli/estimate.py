"""`galvatron estimate`: the predicted time and memory of a plan."""

from __future__ import annotations

from typing import Annotated

import typer

from galvatron.cli.inputs import (
    ClusterText,
    GlobalBatch,
    Inductor,
    Json,
    PlanText,
    ProgramFile,
    read_cluster,
    read_plan,
    read_program,
)
from galvatron.cli.optimizers import OptimizerText, read_optimizer
from galvatron.cli.space import Skew


def command(
    program_file: ProgramFile,
    cluster: ClusterText,
    plan: PlanText,
    global_batch: GlobalBatch = None,
    parts: Annotated[
        bool, typer.Option("--breakdown", help="Say what the time and the memory of each stage are made of.")
    ] = False,
    skew: Skew = None,
    inductor: Inductor = False,
    optimizer: OptimizerText = None,
    json: Json = False,
) -> None:
    """Predict the step time and peak memory of a plan."""
    machines = read_cluster(cluster)
    program = read_program(program_file)
    chosen = read_plan(plan, program, machines, global_batch)

    from galvatron import offline
    from galvatron.breakdown import breakdown
    from galvatron.cli.tables import breakdown_tables, estimate_json, print_estimate, print_tables

    trains = read_optimizer(optimizer)
    estimate = offline.estimate(
        program,
        chosen,
        machines,
        global_batch_size=chosen.global_batch_size,
        inductor=inductor,
        optimizer=trains,
        skew=skew,
    )
    stages = breakdown(estimate.step_time_s, estimate.stages, chosen.micro_batches) if parts else ()
    if json:
        print(estimate_json(estimate, stages))
        return
    print_estimate(estimate, chosen, program)
    if stages:
        print_tables(breakdown_tables(stages))
