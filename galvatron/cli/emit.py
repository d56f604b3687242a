"""`galvatron emit`: the Python source of every stage."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from galvatron.cli.inputs import ClusterText, GlobalBatch, PlanText, ProgramFile, read_cluster, read_plan, read_program
from galvatron.cli.output import log_on_stderr, say, write_file


def command(
    program_file: ProgramFile,
    cluster: ClusterText,
    plan: PlanText,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Where the modules go.")],
    global_batch: GlobalBatch = None,
    timing: Annotated[bool, typer.Option("--timing", help="Tell on stderr what verifying the program took.")] = False,
) -> None:
    """Write the Python source of every stage of a plan, and print the paths."""
    machines = read_cluster(cluster)
    program = read_program(program_file)
    chosen = read_plan(plan, program, machines, global_batch)

    from galvatron import offline

    with log_on_stderr() if timing else nullcontext():
        texts = offline.emit(program, chosen, machines, global_batch_size=chosen.global_batch_size)
    for name, text in texts.items():
        write_file(output / name, text)
        say(output / name)
