"""`galvatron reduce`: the smallest program of which a check still fails."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from galvatron.cli.bisect import Passes, chosen
from galvatron.cli.checks import CheckCommand, passes_check
from galvatron.cli.inputs import ProgramFile, read_program
from galvatron.cli.output import STDOUT, file_to_write, say, write_or_print
from galvatron.errors import GalvatronError


def command(
    program_file: ProgramFile,
    passes: Passes = "",
    check: CheckCommand = None,
    output: Annotated[
        Path,
        typer.Option("-o", "--output", metavar="P.gir", parser=file_to_write, help="Where it goes; - is stdout."),
    ] = STDOUT,
) -> None:
    """Make a captured program smaller for as long as a check fails.

    The check is a command of yours, or else that passes change what is computed, or raise: then the same pass goes on
    failing in the same way. What is left ends in the sum of a value, and is given what the ops made that are gone.
    """
    from galvatron.debugging.passes import failure
    from galvatron.debugging.reducing import reduced
    from galvatron.ir.text import print_program

    program = read_program(program_file)
    pipeline = chosen(passes, program)
    if check is not None:
        succeeds = passes_check(check)
        smaller = reduced(program, lambda one: not succeeds(one))
    else:
        first = failure(program, pipeline)
        if first is None:
            raise GalvatronError("no pass fails or changes what is computed, so that there is nothing to look for")
        smaller = reduced(program, lambda one: first.is_like(failure(one, pipeline)))
    before, after = (len(one.required_graph.ops) for one in (program, smaller))
    say(f"{after} of {before} ops are left", err=True)
    text = print_program(smaller)
    write_or_print(output, text)
