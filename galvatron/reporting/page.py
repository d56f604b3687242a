"""The page: its figures, and the files that draw them, as one text."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from galvatron.answers.diff import differences
from galvatron.answers.question import Question
from galvatron.breakdown import TITLES
from galvatron.bugs import ours
from galvatron.costs.memory import KINDS
from galvatron.errors import GalvatronError
from galvatron.forms import valid
from galvatron.ir.cluster import Cluster
from galvatron.ir.plan import Plan
from galvatron.ir.planned import names_plan_file
from galvatron.ir.program import Program
from galvatron.pages import html_page
from galvatron.plain import plain_torch
from galvatron.plan_arguments import read_memory
from galvatron.reporting.decisions import decisions_data
from galvatron.reporting.passes import passes_data
from galvatron.reporting.plans import TRAITS, Estimated, plan_data
from galvatron.reporting.steps import step_data
from galvatron.search_options import SearchOptions

FILES = Path(__file__).parent / "page"

WHOLE_TREE = 64
"""Of more devices the decisions are those at the plan's own pipeline degree: all of them are hundreds of thousands."""

SCRIPTS = ("shown.js", "charts.js", "layers.js", "timeline.js", "memory.js", "texts.js", "page.js")
"""In the order in which they are run, as one script."""


@plain_torch()
def report(
    program: Program,
    plan: Plan | str | os.PathLike[str],
    cluster: Cluster | str | None = None,
    *,
    memory: int | str | None = None,
    against: Plan | str | os.PathLike[str] | None = None,
) -> str:
    """A plan and why it is so, as the text of one page of HTML that needs nothing beside it.

    Args:
        program: captured, or any later form up to planned.
        plan: a plan for it, the path of a plan file, or one strategy for all layers, such as `pp2/m4/1f1b/dp1-tp2`.
        cluster: where; None is that of the plan.
        memory: budget per device, in bytes or like `"36GiB"`; None is that of the search, or of the cluster.
        against: another plan for the same program, shown beside it; on the same cluster and for the same batch, where
            it says none.

    Raises:
        PlanError: a plan does not fit the program or the cluster.
        VerifyError: the program breaks a rule of its form.
        GalvatronError: another argument is wrong, or says no cluster.
    """
    budget = read_memory(memory)
    given = [plan] if against is None else [plan, against]
    for one in given:
        if not isinstance(one, (Plan, str, os.PathLike)):
            raise GalvatronError(f"a plan, or the path of a plan file, is needed, not {type(one).__name__}")
    program = valid(program)
    estimated: list[Estimated] = []
    for one in given:
        first = estimated[0].question if estimated else None
        estimated.append(asked(program, one, cluster, budget, _name(one), first and first.plan))
    with ours("reporting a plan", program):
        return page(page_data(program, estimated))


def _name(plan: Plan | str | os.PathLike[str]) -> str:
    """What the page calls a plan: its file without the folder, or what one strategy for all layers says."""
    if isinstance(plan, Plan):
        return ""
    text = os.fspath(plan)
    return Path(text).name if names_plan_file(text) else text


def asked(
    program: Program,
    plan: Plan | str | os.PathLike[str],
    cluster: Cluster | str | None,
    memory_bytes: int | None,
    name: str,
    other: Plan | None = None,
) -> Estimated:
    """What a question asks for (`Question.asked`), with what the cost model says of it."""
    found = Question.asked(program, plan, cluster, memory_bytes, other)
    degree = found.plan.pipeline_degree if found.plan.world_size > WHOLE_TREE else None
    return Estimated(replace(found, options=SearchOptions(pipeline_degree=degree)), name)


def page_data(program: Program, plans: list[Estimated]) -> dict[str, Any]:
    """All that the page shows, for JSON: a program and one plan for it, or two."""
    layers = [layer.name for layer in plans[0].question.program.planned_layers]
    told = [one.predicted for one in plans]
    return {
        "program": program.name,
        "layers": layers,
        "titles": TITLES,
        "memory_kinds": KINDS,
        "traits": TRAITS,
        "plans": [plan_data(one) | {"step": step_data(one)} for one in plans],
        "decisions": decisions_data(plans[0].question),
        "code": passes_data(program, plans[0].question),
        "differences": [[own.what, own.first, own.second] for own in differences(told[0], told[-1], layers)],
    }


def page(data: dict[str, Any]) -> str:
    """The page that shows figures."""
    body, style, *scripts = ((FILES / name).read_text(encoding="utf-8") for name in ("body.html", "page.css", *SCRIPTS))
    title = f"{data['program']}: {data['plans'][0]['text']}"
    return html_page(title, body, style=style, script="\n".join(scripts), data=data)
