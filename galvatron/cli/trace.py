"""`galvatron trace`: the predicted step as a timeline, and two timelines beside each other."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from galvatron.cli.inputs import Json, read_program
from galvatron.cli.output import check_is_no_input, file_to_write, write_file
from galvatron.cli.progress import shown_progress
from galvatron.errors import GalvatronError

if TYPE_CHECKING:
    from galvatron.timelines.timeline import Timeline


def command(
    plan_file: Annotated[
        Path | None, typer.Argument(metavar="PLAN.json", help="A plan that a search found, or any other.")
    ] = None,
    program_file: Annotated[
        Path | None, typer.Option("-p", "--program", metavar="PROGRAM.gir", help="The program that it is for.")
    ] = None,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE.json", parser=file_to_write, help="The timeline.")
    ] = Path("trace.json"),
    cluster: Annotated[
        str | None, typer.Option("--cluster", metavar="CLUSTER", help="Where, if not on that of the plan.")
    ] = None,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option("--compare", metavar="A.json B.json", help="Show what takes another time in B than in A."),
    ] = None,
    most: Annotated[int, typer.Option("--most", min=1, metavar="N", help="Differences that --compare shows.")] = 20,
    json: Json = False,
) -> None:
    """Write the predicted step of a plan as a timeline that Perfetto (ui.perfetto.dev) and Chrome show.

    Each pipeline rank is a process with tracks for what it computes and for each kind of communication, and a counter
    of its memory. `compiled.profile` writes measured steps in the same form; --compare shows of two timelines what
    differs most, by name and per step.
    """
    if compare is not None:
        if plan_file is not None or program_file is not None:
            raise GalvatronError("--compare reads two timelines and no plan: leave the plan and the program out")
        return _compare(*compare, most, json)
    if plan_file is None or program_file is None:
        raise GalvatronError("name a plan and its program, as in galvatron trace plan.json -p p.gir, or two timelines")
    check_is_no_input(output, plan_file, program_file)
    write_file(output, _predicted(plan_file, program_file, cluster).to_json())
    print(output)


def _predicted(plan_file: Path, program_file: Path, cluster: str | None) -> Timeline:
    from galvatron.costs.kept import kept_costs
    from galvatron.ir.files import cache_directory
    from galvatron.reporting.page import asked
    from galvatron.timelines.predicted import predicted_timeline

    with shown_progress(), kept_costs(cache_directory()):
        question = asked(read_program(program_file), plan_file, cluster, None, plan_file.name).question
        return predicted_timeline(question.program, question.plan)


def _compare(first: Path, second: Path, most: int, json: bool) -> None:
    from galvatron.ir.files import read_text
    from galvatron.ir.limits import TIMELINE_CHARACTERS
    from galvatron.printing import printable
    from galvatron.timelines.compare import differences, table
    from galvatron.timelines.timeline import Timeline

    def read(path: Path) -> Timeline:
        try:
            return Timeline.from_json(read_text(path, TIMELINE_CHARACTERS), str(path))
        except UnicodeDecodeError:
            raise GalvatronError(f"{path} is not a text file") from None

    own = read(first), read(second)
    found = differences(*own)
    if json:
        print(json_module.dumps([one.to_dict() for one in found], indent=2))
    else:
        heads = (own[0].kind, own[1].kind) if own[0].kind != own[1].kind else ("A", "B")
        print(printable(table(found, *heads, most)))
