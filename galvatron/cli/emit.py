"""`galvatron emit`: the Python source of every stage."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from galvatron.cli.inputs import ClusterText, GlobalBatch, PlanText, ProgramFile, read_cluster, read_plan, read_program
from galvatron.cli.output import write_file


def command(
    program_file: ProgramFile,
    cluster: ClusterText,
    plan: PlanText,
    global_batch: GlobalBatch,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Where the modules go.")],
) -> None:
    """Write the Python source of every stage of a plan, and print the paths."""
    machines = read_cluster(cluster)
    program = read_program(program_file)
    chosen = read_plan(plan, program, machines, global_batch)

    from galvatron import api

    for name, text in api.emit(program, chosen, machines, global_batch_size=global_batch).items():
        write_file(output / name, text)
        print(output / name)
