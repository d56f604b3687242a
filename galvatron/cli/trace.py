"""`galvatron trace`: the predicted step as a timeline, and two timelines beside each other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from galvatron.cli.inputs import Json, read_program
from galvatron.cli.output import as_json, check_is_no_input, file_to_write, say, write_file
from galvatron.cli.progress import shown_progress
from galvatron.errors import GalvatronError

if TYPE_CHECKING:
    from galvatron.timelines.timeline import Timeline


def command(
    plan_file: Annotated[
        Path | None,
        typer.Argument(metavar="PLAN", help="A plan file, or one strategy for all layers: pp2/m4/1f1b/dp1-tp2."),
    ] = None,
    program_file: Annotated[
        Path | None, typer.Option("-p", "--program", metavar="PROGRAM.gir", help="The program that it is for.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="FILE.json", parser=file_to_write, help="The timeline.", show_default="trace.json"
        ),
    ] = None,
    cluster: Annotated[
        str | None, typer.Option("--cluster", metavar="CLUSTER", help="Where, if not on that of the plan.")
    ] = None,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option("--compare", metavar="A.json B.json", help="Show by how much A is off, relative to B."),
    ] = None,
    most: Annotated[
        int | None,
        typer.Option("--most", min=1, metavar="N", help="Differences that --compare shows: 20, or with --json all."),
    ] = None,
    json: Json = False,
) -> None:
    """Write the predicted step of a plan as a timeline that Perfetto (ui.perfetto.dev) and Chrome show.

    Each pipeline rank is a process with tracks for what it computes and for each kind of communication, and a counter
    of its memory. `compiled.profile` writes measured steps in the same form; --compare shows of two timelines what
    differs most, by name and per step.
    """
    if compare is not None:
        if any(given is not None for given in (plan_file, program_file, output, cluster)):
            raise GalvatronError(
                "--compare reads two timelines and no plan: leave the plan, the program, --output and --cluster out"
            )
        return _compare(*compare, most, json)
    if plan_file is None or program_file is None:
        raise GalvatronError("name a plan and its program, as in galvatron trace plan.json -p p.gir, or two timelines")
    if json or most is not None:
        raise GalvatronError("--json and --most are for --compare: a timeline is JSON, in the file of --output")
    output = output or file_to_write("trace.json")
    check_is_no_input(output)
    write_file(output, _predicted(plan_file, program_file, cluster))
    say(output)


def _predicted(plan_file: Path, program_file: Path, cluster: str | None) -> str:
    from galvatron.costs.kept import kept_costs
    from galvatron.ir.files import cache_directory
    from galvatron.reporting.page import asked
    from galvatron.timelines.predicted import predicted_timeline
    from galvatron.timelines.text import timeline_text

    with shown_progress(), kept_costs(cache_directory()):
        own = asked(read_program(program_file), plan_file, cluster, None, plan_file.name)
        return timeline_text(predicted_timeline(own.program, own.plan))


def _compare(first: Path, second: Path, most: int | None, json: bool) -> None:
    from galvatron.ir.files import read_text
    from galvatron.ir.limits import TIMELINE_CHARACTERS
    from galvatron.timelines.compare import differences, table
    from galvatron.timelines.text import read_timeline

    def read(path: Path) -> Timeline:
        try:
            return read_timeline(read_text(path, TIMELINE_CHARACTERS), str(path))
        except UnicodeDecodeError:
            raise GalvatronError(f"{path} is not a text file") from None

    own = read(first), read(second)
    found = differences(*own)
    if json:
        say(as_json([one.to_dict() for one in found[:most]]))
    else:
        heads = (own[0].kind, own[1].kind) if own[0].kind != own[1].kind else ("A", "B")
        say(table(found, *heads, most or 20))
