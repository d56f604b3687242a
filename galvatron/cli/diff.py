"""`galvatron diff`: in what two plans differ."""

from __future__ import annotations

import dataclasses
import json as json_module
from pathlib import Path
from typing import Annotated

import typer

from galvatron.cli.inputs import Json, read_program


def command(
    first: Annotated[Path, typer.Argument(metavar="A.json", help="A plan.")],
    second: Annotated[Path, typer.Argument(metavar="B.json", help="Another one.")],
    program_file: Annotated[
        Path | None, typer.Option("-p", "--program", metavar="PROGRAM.gir", help="For the names of layers.")
    ] = None,
    json: Json = False,
) -> None:
    """Show in what two plans differ; the exit status is 1 if they do."""
    from galvatron.answers.diff import differences
    from galvatron.cli.answers import differences_text
    from galvatron.ir.plan import Plan

    plans = Plan.load(first), Plan.load(second)
    names = () if program_file is None else [layer.name for layer in read_program(program_file).planned_layers]
    told = [dataclasses.asdict(one) for one in differences(*plans, names)]
    print(json_module.dumps(told, indent=2) if json else differences_text(told))
    if told:
        raise typer.Exit(1)
