"""`galvatron opt`: runs passes on a program; the program goes to stdout, everything else to stderr."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from galvatron.cli.inputs import read_program
from galvatron.cli.output import (
    STDOUT,
    as_json,
    error_json,
    file_to_write,
    say,
    tie_line,
    write_file,
    write_or_print,
)
from galvatron.errors import GalvatronError, PassError, did_you_mean

if TYPE_CHECKING:
    from galvatron.ir.program import Program
    from galvatron.passes import instrument
    from galvatron.passes.counting import Counting
    from galvatron.passes.pipeline import Instrument, Pipeline

Names = list[str] | None


def pass_names_from(incomplete: str) -> list[str]:
    """The passes that a shell completes, also behind others and a comma."""
    from galvatron.passes.registry import pass_names

    before, comma, begun = incomplete.rpartition(",")
    return [f"{before}{comma}{name}" for name in pass_names() if name.startswith(begun)]


def command(
    program_file: Annotated[
        Path | None, typer.Argument(metavar="PROGRAM.gir", help="A program in any form; - reads stdin.")
    ] = None,
    passes: Annotated[
        str,
        typer.Option(
            "--passes",
            metavar="TEXT",
            autocompletion=pass_names_from,
            help="Such as 'prune,search{memory=36GiB,schedule=1f1b}'.",
        ),
    ] = "",
    output: Annotated[
        Path,
        typer.Option("-o", "--output", metavar="P.gir", parser=file_to_write, help="Where it goes; - is stdout."),
    ] = STDOUT,
    list_passes: Annotated[bool, typer.Option("--list-passes", help="Show every pass with its options.")] = False,
    list_pipeline: Annotated[
        bool, typer.Option("--list-pipeline", help="Print the passes that compile a program, from its form on.")
    ] = False,
    cluster: Annotated[
        str | None, typer.Option("--cluster", metavar="CLUSTER", help="The one of these, such as a100-80g:2x8.")
    ] = None,
    stop_after: Annotated[
        str | None,
        typer.Option(
            "--stop-after", metavar="PASS", autocompletion=pass_names_from, help="Leave out the passes behind one."
        ),
    ] = None,
    bisect_limit: Annotated[
        int | None, typer.Option("--bisect-limit", min=0, metavar="N", help="Run the first N passes only.")
    ] = None,
    limit_rewrites: Annotated[
        Names,
        typer.Option("--limit-rewrites", metavar="PASS=N", help="Let a pass do its first N rewrites only; repeatable."),
    ] = None,
    print_before: Annotated[
        Names,
        typer.Option(
            "--print-before",
            metavar="PASS",
            autocompletion=pass_names_from,
            help="Show the program before a pass; repeatable.",
        ),
    ] = None,
    print_after: Annotated[
        Names,
        typer.Option(
            "--print-after",
            metavar="PASS",
            autocompletion=pass_names_from,
            help="Show the program after a pass; repeatable.",
        ),
    ] = None,
    print_after_all: Annotated[
        bool, typer.Option("--print-after-all", help="Show the program after every pass.")
    ] = False,
    print_after_change: Annotated[
        bool, typer.Option("--print-after-change", help="Show the program after passes that change it.")
    ] = False,
    diff: Annotated[
        bool, typer.Option("--diff", help="Show in what passes change the program, after each if none is named.")
    ] = False,
    only: Annotated[str, typer.Option("--only", metavar="LAYER", help="Show one layer, such as layers.3.")] = "",
    locations: Annotated[
        bool, typer.Option("--locations", help="Show beside each op the line of the model that it comes from.")
    ] = False,
    dump_tree: Annotated[
        Path | None, typer.Option("--dump-tree", metavar="DIR", help="Write the program after every pass into files.")
    ] = None,
    timing: Annotated[
        bool, typer.Option("--timing", help="Show the time of every pass and of verifying its result.")
    ] = False,
    stats: Annotated[
        bool, typer.Option("--stats", help="Show what every pass did, what 'shard' left whole, and what is sent.")
    ] = False,
    remarks: Annotated[bool, typer.Option("--remarks", help="Show what passes say of single ops.")] = False,
    json: Annotated[
        Path | None,
        typer.Option(
            "--json", metavar="PATH", parser=file_to_write, help="Where to write all of that, and an error, as JSON."
        ),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Verify the program before the first pass and after each.")
    ] = True,
    check: Annotated[
        bool, typer.Option("--check", help="Run the program before and after each pass: what is computed stays.")
    ] = False,
    reproducer: Annotated[
        Path | None,
        typer.Option(
            "--reproducer", metavar="PATH", parser=file_to_write, help="Where to write what made a pass fail."
        ),
    ] = None,
) -> None:
    """Run passes on a program and print the result, also those of --diff and the like of a pass that is refused.

    The exit status is 0, or 2 where the program, an option or a pass is at fault.
    """
    from galvatron.passes import counting, instrument
    from galvatron.passes.printing import DumpTree, PrintPrograms, part

    if cluster is not None and not list_pipeline:
        raise GalvatronError(
            "--cluster is for --list-pipeline; a pass has it as an option, annotate-costs{cluster=...}"
        )
    if not list_passes and str(json) == str(output) == "-":
        raise GalvatronError("--json and the program both go to stdout: name a file for one, as with -o")
    if list_passes:
        return _list_passes(json)
    run = _Run(instrument.Timing(), instrument.VerifyEach(), counting.Counting(), instrument.Before("shard"))
    with _error_in(json, run):
        if program_file is None and not list_pipeline:
            raise GalvatronError("name a program, such as PROGRAM.gir, or - for stdin")
        pipeline = _limited(_pipeline(passes, stop_after, bisect_limit), limit_rewrites or ())
        _check_names(pipeline, (*(print_before or ()), *(print_after or ())))
        program = None if program_file is None else read_program(program_file, verified=False)
        if list_pipeline:
            return say(pipeline_of(program, cluster))
        assert program is not None
        # The first is outermost: a reproducer catches what the verifier finds, which has been shown when it is refused,
        # and the clock sees nothing but the pass.
        instruments: list[Instrument] = []
        if reproducer is not None:
            instruments.append(instrument.Reproducer(reproducer, write_file))
        named = print_before or print_after or print_after_all
        changes = print_after_change or (diff and not named)
        if only and not (named or changes):
            raise PassError(
                "--only says of what is shown which layer; show something, as with --diff or --print-after-all"
            )
        before, after = print_before or (), print_after or ()
        printing = PrintPrograms(before, after, print_after_all, changes, diff, only, locations)
        try:
            if verify:
                run.verifier.verify(program)
                instruments.append(run.verifier)
            if check:
                from galvatron.debugging.passes import CompareEach

                instruments.append(CompareEach())
            if dump_tree is not None:
                instruments.append(DumpTree(dump_tree, write_file))
            if named or changes:
                instruments.append(printing)
            result = pipeline.run(program, [*instruments, run.counting, run.clock, run.unsharded])
        finally:
            if timing:
                run.clock.report(run.verifier.seconds)
        if only and not printing.met:
            part(program, only)  # which says what there is
            part(result, only)
    _tell(run, result, stats=stats, remarks=remarks, json=json)
    from galvatron.ir.text import print_program

    write_or_print(output, print_program(result, locations=locations))


@contextmanager
def _error_in(path: Path | None, run: _Run) -> Iterator[None]:
    """An error is written as JSON as well, where that is asked for."""
    try:
        yield
    except (GalvatronError, OSError) as error:
        if path is not None:
            write_or_print(path, run.as_json(None, error))
        raise


class _Run:
    """What stands around the passes of a run, to be told afterwards."""

    def __init__(
        self,
        clock: instrument.Timing,
        verifier: instrument.VerifyEach,
        counting: Counting,
        unsharded: instrument.Before,
    ) -> None:
        self.clock, self.verifier, self.counting, self.unsharded = clock, verifier, counting, unsharded

    def sharding(self, result: Program) -> Any:
        """What `shard` left whole and what is sent; None where it did not run."""
        if self.unsharded.program is None:
            return None
        from galvatron.costs.fallbacks import sharding_statistics

        return sharding_statistics(self.unsharded.program, result)

    def as_json(self, result: Program | None, error: GalvatronError | OSError | None = None) -> str:
        """Of each pass that came to its end what it did and its seconds, and those of verifying what it gave."""
        from galvatron.cli.stats import statistics_json

        verifying = [*self.verifier.seconds[1:], *[None] * len(self.counting.found)]
        passes = [
            {**counted.as_json(), "seconds": seconds, "verifying_s": verified}
            for counted, (_, seconds), verified in zip(self.counting.found, self.clock.seconds, verifying, strict=False)
        ]
        sharding = None if result is None else self.sharding(result)
        told = {
            "passes": passes,
            "sharding": None if sharding is None else statistics_json(sharding),
            "error": None if error is None else error_json(error),
        }
        return as_json(told) + "\n"


def _tell(run: _Run, result: Program, *, stats: bool, remarks: bool, json: Path | None) -> None:
    """What passes did, to stderr and into a file, as far as it is asked for."""
    from galvatron.cli.stats import print_counts, print_remarks, print_statistics

    if stats:
        print_counts(run.counting.found)
        if (sharding := run.sharding(result)) is not None:
            print_statistics(sharding, tie_line(result.required_plan))
    if remarks:
        print_remarks(run.counting.found)
    if json is not None:
        write_or_print(json, run.as_json(result))


def _pipeline(text: str, stop_after: str | None, limit: int | None) -> Pipeline:
    """The passes of a text, up to one of them, or so many.

    Raises:
        PassError: there is no such pass.
    """
    from galvatron.passes.pipeline import Pipeline

    pipeline = Pipeline.parse(text)
    if stop_after is not None:
        _check_names(pipeline, [stop_after])
        names = [pass_.name for pass_ in pipeline.passes]
        pipeline = Pipeline(pipeline.passes[: names.index(stop_after) + 1])
    return pipeline if limit is None else Pipeline(pipeline.passes[:limit])


def _check_names(pipeline: Pipeline, names: Iterable[str]) -> None:
    """
    Raises:
        PassError: a pass is named that is not in the pipeline.
    """
    own = [pass_.name for pass_ in pipeline.passes]
    for name in names:
        if name not in own:
            hint = did_you_mean(name, own) if own else "there are none; name them with --passes"
            raise PassError(f"pass {name!r} is not among --passes; {hint}")


def _limited(pipeline: Pipeline, limits: Iterable[str]) -> Pipeline:
    """The pipeline with so many rewrites in some passes.

    Raises:
        PassError: a limit is not like `fuse=12`, or of a pass that is not there or does not count rewrites.
    """
    from galvatron.passes.bisecting import with_rewrites
    from galvatron.passes.pipeline import Pipeline

    passes = list(pipeline.passes)
    for limit in limits:
        name, _, count = limit.partition("=")
        if not count.isdecimal():
            raise PassError(f"--limit-rewrites {limit!r} is not like fuse=12")
        _check_names(pipeline, [name])
        passes = [with_rewrites(one, int(count)) if one.name == name else one for one in passes]
    return Pipeline(tuple(passes))


UNNAMED = "PRESET:NODESxDEVICES"
"""In the place of a cluster that was not named."""


def _list_passes(json: Path | None) -> None:
    """Every pass: its name, the forms that it takes and leaves, what it does, and its options."""
    from galvatron.passes.base import options_of
    from galvatron.passes.registry import loadable_passes

    refused: list[PassError] = []
    found = list(loadable_passes(refused))
    rows = [
        {
            "name": cls.name,
            "needs": cls.needed(),
            "leaves": None if cls.leaves is None else str(cls.leaves),
            "does": (cls.__doc__ or "").partition("\n\n")[0].replace("\n", " ").strip(),
            "options": [{"name": o.name, "type": o.kind, "default": o.default} for o in options_of(cls)],
        }
        for cls in found
    ]
    for error in refused:
        say(f"left out: {error}", err=True)
    if json is not None:
        write_or_print(json, as_json(rows) + "\n")
        return
    for row in rows:
        say(f"{row['name']}  ({row['needs']} → {row['leaves'] or 'the same'})\n    {row['does']}")
        for option in row["options"]:
            say(f"    {option['name']}: {option['type']} = {option['default']}")


def pipeline_of(program: Program | None, cluster: str | None) -> Pipeline:
    """The passes that compile a program on a cluster, from its form on; its own where none is named."""
    from galvatron.ir.program import Form
    from galvatron.passes import FRONT_END, LOWERING, PLANNING
    from galvatron.passes.pipeline import Pipeline

    form = Form.CAPTURED if program is None else program.form
    if cluster is None:
        cluster = program.cluster.name if program is not None and program.cluster is not None else UNNAMED
    options = {"annotate-costs": {"cluster": cluster}}
    whole = Pipeline.of((*FRONT_END, *PLANNING, *LOWERING), options).passes
    first = next((place for place, one in enumerate(whole) if one.leaves is not None and one.leaves > form), len(whole))
    while first and whole[first - 1].takes(form) and whole[first - 1].leaves == form:
        first -= 1
    return Pipeline(whole[first:])
