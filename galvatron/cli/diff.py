"""`galvatron diff`: in what two plans, or two programs, differ."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from galvatron.cli.inputs import Json, read_program
from galvatron.cli.output import as_json, say
from galvatron.errors import GalvatronError
from galvatron.printing import print_differences


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
    programs = [_is_program(path) for path in (first, second)]
    if programs[0] != programs[1]:
        of = [
            f"{path} is a {'program' if one else 'plan'}" for path, one in zip((first, second), programs, strict=True)
        ]
        raise GalvatronError(f"{' and '.join(of)}: name two plans or two programs")
    if programs[0]:
        lines = _program_lines(first, second)
        if json:
            say(as_json(lines))
        else:
            print_differences(lines or ["the programs compute the same"])
        raise typer.Exit(1 if lines else 0)
    from galvatron.answers.diff import differences
    from galvatron.cli.answers import differences_text
    from galvatron.ir.plan import Plan

    plans = Plan.load(first), Plan.load(second)
    names = () if program_file is None else [layer.name for layer in read_program(program_file).planned_layers]
    told = [dataclasses.asdict(one) for one in differences(*plans, names)]
    say(as_json(told) if json else differences_text(told))
    if not names and plans[0].strategies != plans[1].strategies:
        typer.echo("layers have names with -p PROGRAM.gir", err=True)
    if told:
        raise typer.Exit(1)


def _program_lines(first: Path, second: Path) -> list[str]:
    """The lines that say in what two programs differ, which need not be valid."""
    from galvatron.ir.text.differences import program_differences

    return program_differences(read_program(first, verified=False), read_program(second, verified=False))


def _is_program(path: Path) -> bool:
    """Whether a file begins as a program does, and not as a plan, which is JSON."""
    from galvatron.ir.files import read_text

    try:
        return not read_text(path).lstrip().startswith("{")
    except UnicodeDecodeError:
        raise GalvatronError(f"{path} is not a text file") from None
