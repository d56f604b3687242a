"""What the passes made of the program, one by one, and the code that came out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from galvatron.answers.question import Question
from galvatron.bugs import in_passes
from galvatron.forms import emitted
from galvatron.ir.planned import with_plan
from galvatron.ir.program import Form, Program
from galvatron.ir.text.differences import program_differences
from galvatron.ir.verify import verify
from galvatron.passes import FRONT_END, LOWERING
from galvatron.passes.base import PassResult
from galvatron.passes.pipeline import Pipeline, Step

LINES = 1500
"""So many lines of a difference are shown."""

BETWEEN = "\n\n\n"
"""Between the functions and classes of a module."""


@dataclass
class Differences:
    """Instrument: keeps in what the texts before and after each pass differ."""

    found: list[dict[str, Any]] = field(default_factory=list)

    def __call__(self, step: Step, proceed: Callable[[], PassResult]) -> PassResult:
        result = proceed()
        self.add(step.pass_.name, step.program, result.program)
        return result

    def add(self, name: str, before: Program, after: Program) -> Program:
        """What a pass gave, which is now kept."""
        self.found.append({"name": name, **difference(before, after)})
        return after


def difference(before: Program, after: Program) -> dict[str, Any]:
    """In what two programs differ, with how many lines are gone and there; no more than `LINES` are shown."""
    lines = program_differences(before, after)
    return {
        "gone": sum(line.lstrip().startswith("- ") for line in lines),
        "added": sum(line.lstrip().startswith("+ ") for line in lines),
        "lines": "\n".join(lines[:LINES]),
        "left_out": max(0, len(lines) - LINES),
    }


def passes_data(program: Program, question: Question) -> dict[str, Any]:
    """What each pass changed on the way from a program to the stages of the plan, and their code, for JSON.

    Modules are lists of places in `blocks`, which stages share.
    """
    own = Differences()
    if program.form is Form.CAPTURED:
        program = Pipeline.of(FRONT_END).run(program, [own, in_passes])
    if program.form < Form.PLANNED:
        own.add("annotate-costs", program, question.program)
    planned = own.add("use-plan", question.program, with_plan(question.program, question.plan))
    staged = Pipeline.of(LOWERING).run(planned, [own, in_passes])
    verify(staged)
    blocks: dict[str, int] = {}
    modules = {
        name: [blocks.setdefault(block, len(blocks)) for block in text.split(BETWEEN)]
        for name, text in emitted(staged).items()
    }
    return {"passes": own.found, "blocks": list(blocks), "modules": modules}
