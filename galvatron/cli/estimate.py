"""`galvatron estimate`: the predicted time and memory of a plan."""

from __future__ import annotations

from galvatron.cli.inputs import (
    ClusterText,
    GlobalBatch,
    Json,
    PlanText,
    ProgramFile,
    read_cluster,
    read_plan,
    read_program,
)


def command(
    program_file: ProgramFile, cluster: ClusterText, plan: PlanText, global_batch: GlobalBatch, json: Json = False
) -> None:
    """Predict the step time and peak memory of a plan."""
    machines = read_cluster(cluster)
    program = read_program(program_file)
    chosen = read_plan(plan, program, machines, global_batch)

    from galvatron import api
    from galvatron.cli.tables import estimate_json, print_estimate

    estimate = api.estimate(program, chosen, machines, global_batch_size=global_batch)
    if json:
        print(estimate_json(estimate))
    else:
        print_estimate(estimate, chosen, program)
