"""`galvatron search`: the plan with the shortest predicted step that fits the memory."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from galvatron.cli.inputs import ClusterText, GlobalBatch, Inductor, Json, ProgramFile, read_cluster, read_program
from galvatron.units import parse_bytes


def command(
    program_file: ProgramFile,
    cluster: ClusterText,
    global_batch: GlobalBatch,
    memory: Annotated[
        str | None, typer.Option("--memory", metavar="BYTES", help="Budget per device, such as 36GiB.")
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", metavar="PLAN.json", help="Where it goes.")] = None,
    inductor: Inductor = False,
    json: Json = False,
) -> None:
    """Search the best plan for a program on a cluster."""
    budget = None if memory is None else parse_bytes(memory)
    machines = read_cluster(cluster)
    program = read_program(program_file)

    from galvatron import api

    plan = api.search(program, machines, memory=budget, global_batch_size=global_batch, inductor=inductor)
    if output is not None:
        plan.save(output)
    if json:
        print(plan.to_json(), end="")
    else:
        from galvatron.cli.tables import print_plan

        print_plan(plan, program)
