"""`galvatron bisect`: the first pass, and the first rewrite in it, that makes a program wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from galvatron.cli.checks import CheckCommand, passes_check
from galvatron.cli.inputs import Json, ProgramFile, read_program
from galvatron.cli.output import as_json, say
from galvatron.errors import GalvatronError, PassError

if TYPE_CHECKING:
    from galvatron.debugging.passes import Outcome
    from galvatron.ir.program import Program
    from galvatron.passes.bisecting import BrokenBy, Culprit
    from galvatron.passes.pipeline import Pipeline

Passes = Annotated[
    str, typer.Option("--passes", metavar="TEXT", help="As for `opt`; without it those that are left up to layers.")
]


def command(program_file: ProgramFile, passes: Passes = "", check: CheckCommand = None, json: Json = False) -> None:
    """Find the pass that makes a program wrong.

    It is wrong where the check fails: a command of yours, or else that the numbers before and after a pass differ, of
    values or of gradients, in float64 and for random numbers of several scales. Within `normalize` and `fuse` the first
    rewrite is found. Passes of which random numbers say nothing are named. The exit status is 1 if a pass is to blame.
    """
    from galvatron.passes.bisecting import first_rewrite

    program = read_program(program_file)
    pipeline = chosen(passes, program)
    culprit, why, unknown = _culprit(program, pipeline, check)
    rewrite = culprit and first_rewrite(culprit, _good(culprit, check))
    say(as_json(_as_json(culprit, rewrite, why, unknown)) if json else _text(culprit, rewrite, why, unknown))
    if culprit:
        raise typer.Exit(1)


def chosen(passes: str, program: Program) -> Pipeline:
    """The passes that are named, or those that take a program to layers."""
    from galvatron.passes import FRONT_END
    from galvatron.passes.pipeline import Pipeline

    pipeline = Pipeline.parse(passes) if passes or program.graph is None else Pipeline.of(FRONT_END)
    if not pipeline.passes:
        raise PassError(
            f"the program is {program.form}: name passes with --passes; `galvatron opt --list-pipeline` prints those "
            "that compile it"
        )
    return pipeline


def _culprit(program: Program, pipeline: Pipeline, check: str | None) -> tuple[Culprit | None, str, list[Outcome]]:
    """The pass that is to blame, and why; and those before it of which nothing is known."""
    from galvatron.debugging.passes import outcomes
    from galvatron.passes.bisecting import Culprit, bisect

    if check is not None:
        culprit = bisect(program, pipeline, passes_check(check))
        return culprit, "it raises" if culprit and culprit.after is None else f"{check!r} fails", []
    unknown: list[Outcome] = []
    for found in outcomes(program, pipeline):
        if found.kind == "unknown":
            unknown.append(found)
        if found.failed:
            culprit = Culprit(found.index, pipeline.passes[found.index], found.before, found.after)
            return culprit, f"{found.kind}: {found.text}", unknown
    return None, "", unknown


def _good(culprit: Culprit, check: str | None) -> Callable[[Program], bool]:
    from galvatron.debugging.passes import pass_departure
    from galvatron.ir.verify import verify

    if check is not None:
        return passes_check(check)

    def good(program: Program) -> bool:
        try:
            verify(program)
            return pass_departure(culprit.before, program) is None
        except GalvatronError:
            return False

    return good


def _text(culprit: Culprit | None, rewrite: BrokenBy | None, why: str, unknown: list[Outcome]) -> str:
    open_ = [f"nothing is known of pass {one.index + 1}, {one.pass_}: {one.text}" for one in unknown]
    if culprit is None:
        each = "what each other one gives" if unknown else "what each gives"
        return "\n".join([f"no pass is to blame: {each} passes the check", *open_])
    lines = [f"pass {culprit.index + 1}, {culprit.pass_}: {why}"]
    if rewrite is not None:
        lines.append(f"rewrite {rewrite.number}: {rewrite.remark}")
        lines += _differences(rewrite)
        lines.append(f"  see it with --limit-rewrites {culprit.pass_.name}={rewrite.number}")
    return "\n".join([*lines, *open_])


def _differences(rewrite: BrokenBy) -> list[str]:
    from galvatron.passes.printing import differences

    return [] if rewrite.after is None else [f"  {line}" for line in differences(rewrite.before, rewrite.after)]


def _as_json(culprit: Culprit | None, rewrite: BrokenBy | None, why: str, unknown: list[Outcome]) -> dict[str, object]:
    open_ = [{"pass": one.pass_, "place": one.index + 1, "why": one.text} for one in unknown]
    if culprit is None:
        return {"pass": None, "rewrite": None, "unknown": open_}
    source = rewrite and rewrite.remark.op and rewrite.remark.op.source
    return {
        "pass": str(culprit.pass_),
        "place": culprit.index + 1,
        "why": why,
        "rewrite": rewrite
        and {
            "number": rewrite.number,
            "rule": rewrite.remark.rule,
            "op": rewrite.remark.op and rewrite.remark.op.target,
            "file": source and source.file,
            "line": source and source.line,
            "module": source and source.scope,
        },
        "unknown": open_,
    }
