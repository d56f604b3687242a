"""`galvatron report`: a page that shows a plan and why it is so."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from galvatron.cli.explain import PlanFile, Program
from galvatron.cli.inputs import read_program
from galvatron.cli.output import OutputFile, file_to_write, say, write_file
from galvatron.cli.progress import shown_progress

_PAGE = OutputFile("report.html")


def command(
    plan_file: PlanFile,
    program_file: Program,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE.html", parser=file_to_write, help="The page.")
    ] = _PAGE,
    against: Annotated[Path | None, typer.Option("--against", metavar="PLAN", help="A plan to show beside it.")] = None,
    cluster: Annotated[
        str | None, typer.Option("--cluster", metavar="CLUSTER", help="Where, if not on that of the plan.")
    ] = None,
    memory: Annotated[
        str | None, typer.Option("--memory", metavar="BYTES", help="Budget per device, if not that of the search.")
    ] = None,
) -> None:
    """Write one page of HTML that shows a plan: its time, memory, strategies, decisions, passes and code."""
    from galvatron.costs.kept import kept_costs
    from galvatron.ir.files import cache_directory
    from galvatron.reporting.page import report

    program = read_program(program_file)
    with shown_progress(), kept_costs(cache_directory()):
        text = report(program, plan_file, cluster, memory=memory, against=against)
    write_file(output, text)
    say(output)
