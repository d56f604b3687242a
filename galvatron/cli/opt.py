"""`galvatron opt`: runs passes on a program; the program goes to stdout, everything else to stderr."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from galvatron.cli.inputs import ProgramFile, read_program
from galvatron.cli.output import tie_line, write_file
from galvatron.errors import PassError


def command(
    program_file: ProgramFile,
    passes: Annotated[
        str, typer.Option("--passes", metavar="TEXT", help="Such as 'prune,search{memory=36GiB,schedule=1f1b}'.")
    ] = "",
    timing: Annotated[
        bool, typer.Option("--timing", help="Show the time of every pass and of verifying its result.")
    ] = False,
    print_after_all: Annotated[bool, typer.Option(help="Show the program after every pass.")] = False,
    print_after_change: Annotated[bool, typer.Option(help="Show the program after passes that change it.")] = False,
    verify: Annotated[bool, typer.Option(help="Verify the program before the first pass and after each.")] = True,
    stats: Annotated[
        bool, typer.Option("--stats", help="Show what 'shard' left whole on several devices, and what is sent.")
    ] = False,
    stats_json: Annotated[
        Path | None, typer.Option("--stats-json", metavar="PATH", help="Where to write the same as JSON.")
    ] = None,
    reproducer: Annotated[
        Path | None, typer.Option("--reproducer", metavar="PATH", help="Where to write what made a pass fail.")
    ] = None,
) -> None:
    """Run passes on a program and print the result."""
    from galvatron.ir.text import print_program
    from galvatron.passes import instrument
    from galvatron.passes.pipeline import Instrument, Pipeline

    pipeline = Pipeline.parse(passes)
    counted = stats or stats_json is not None
    if counted and not any(pass_.name == "shard" for pass_ in pipeline.passes):
        raise PassError("--stats compares the program before 'shard' with that after it; put 'shard' into --passes")
    program = read_program(program_file, verified=False)
    clock, verifier = instrument.Timing(), instrument.VerifyEach()
    # The first is outermost: a reproducer catches what the verifier finds, and the clock sees nothing but the pass.
    instruments: list[Instrument] = []
    if reproducer is not None:
        instruments.append(instrument.Reproducer(reproducer))
    if verify:
        verifier.verify(program)
        instruments.append(verifier)
    if print_after_all or print_after_change:
        instruments.append(instrument.PrintAfter(only_changes=not print_after_all))
    instruments.append(clock)
    unsharded = instrument.Before("shard")
    instruments.append(unsharded)
    try:
        result = pipeline.run(program, instruments)
    finally:
        if timing:
            clock.report(verifier.seconds)
    if counted:
        from galvatron.cli.stats import print_statistics, statistics_json
        from galvatron.costs.fallbacks import sharding_statistics

        assert unsharded.program is not None
        statistics = sharding_statistics(unsharded.program, result)
        if stats_json is not None:
            write_file(stats_json, statistics_json(statistics) + "\n")
        if stats:
            print_statistics(statistics, tie_line(result.required_plan))
    print(print_program(result), end="")
