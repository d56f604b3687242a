"""`galvatron diff`: in what two plans, or two programs, differ."""

from __future__ import annotations

import dataclasses
import json as json_module
from pathlib import Path
from typing import Annotated

import typer

from galvatron.cli.inputs import Json, read_program


def command(
    first: Annotated[Path, typer.Argument(metavar="A", help="A plan (.json) or a program (.gir).")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Another one.")],
    program_file: Annotated[
        Path | None, typer.Option("-p", "--program", metavar="PROGRAM.gir", help="For the names of layers.")
    ] = None,
    json: Json = False,
) -> None:
    """Show in what two plans or two programs differ; the exit status is 1 if they do.

    Programs are compared by what they compute: names of values and columns count for nothing, and what differs alike in
    several layers is shown once. Lines that A alone has begin with -, those that B alone has with +.
    """
    if first.suffix == ".gir" or second.suffix == ".gir":
        lines = _program_lines(first, second)
        print(json_module.dumps(lines, indent=2) if json else "\n".join(lines) or "the programs compute the same")
        raise typer.Exit(1 if lines else 0)
    from galvatron.answers.diff import differences
    from galvatron.cli.answers import differences_text
    from galvatron.ir.plan import Plan

    plans = Plan.load(first), Plan.load(second)
    names = () if program_file is None else [layer.name for layer in read_program(program_file).planned_layers]
    told = [dataclasses.asdict(one) for one in differences(*plans, names)]
    print(json_module.dumps(told, indent=2) if json else differences_text(told))
    if told:
        raise typer.Exit(1)


def _program_lines(first: Path, second: Path) -> list[str]:
    """The lines that say in what two programs differ, which need not be valid."""
    from galvatron.ir.text.differences import program_differences

    return program_differences(read_program(first, verified=False), read_program(second, verified=False))
