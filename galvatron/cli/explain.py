"""`galvatron explain`: why a plan takes as long as it does, why it is not another one, and what else there is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from galvatron.cli.inputs import Json, read_program
from galvatron.cli.output import as_json, say
from galvatron.cli.progress import shown_progress
from galvatron.units import parse_bytes

if TYPE_CHECKING:
    from galvatron.answers.question import Question

PlanFile = Annotated[
    Path, typer.Argument(metavar="PLAN", help="A plan file, or one strategy for all layers: pp2/m4/1f1b/dp1-tp2.")
]
Program = Annotated[Path, typer.Option("-p", "--program", metavar="PROGRAM.gir", help="The program that it is for.")]


def command(
    plan_file: PlanFile,
    program_file: Program,
    cluster: Annotated[
        str | None,
        typer.Option("--cluster", metavar="CLUSTER", help="Where, if not on that of the plan."),
    ] = None,
    memory: Annotated[
        str | None, typer.Option("--memory", metavar="BYTES", help="Budget per device, if not that of the search.")
    ] = None,
    why_not: Annotated[
        str | None, typer.Option("--why-not", metavar="[LAYERS=]TRAITS", help="Why it does not have tp8, say.")
    ] = None,
    alternatives: Annotated[
        int | None, typer.Option("--alternatives", min=1, max=1000, metavar="N", help="The best N other ways to cut.")
    ] = None,
    json: Json = False,
) -> None:
    """Explain a plan: where its time goes, what limits it, and what more memory or bandwidth would buy."""
    from galvatron.answers.question import Question
    from galvatron.costs.kept import kept_costs
    from galvatron.ir.files import cache_directory

    program = read_program(program_file)
    with shown_progress(), kept_costs(cache_directory()):
        question = Question.asked(program, plan_file, cluster, None if memory is None else parse_bytes(memory))
        told = _answer(question, why_not, alternatives)
    say(as_json(told) if json else _text(told))


def _answer(question: Question, why_not: str | None, alternatives: int | None) -> dict[str, Any]:
    """The answers that were asked for, as for JSON; the explanation where nothing else was."""
    from galvatron.answers.alternatives import alternatives as found
    from galvatron.answers.alternatives import why_not as reasons
    from galvatron.answers.explain import explain

    told: dict[str, Any] = {}
    if why_not is not None:
        told["why_not"] = reasons(question, why_not).to_dict()
    if alternatives is not None:
        told["alternatives"] = [
            {"plan": str(plan), "step_time_s": plan.step_time_s, "peak_bytes": plan.peak_bytes}
            for plan in found(question, alternatives)
        ]
    return told or {"explanation": explain(question).to_dict()}


def _text(told: dict[str, Any]) -> str:
    from galvatron.cli.answers import alternatives_text, explanation_text, why_not_text

    texts = {"explanation": explanation_text, "why_not": why_not_text, "alternatives": alternatives_text}
    return "\n\n".join(texts[name](own) for name, own in told.items())
