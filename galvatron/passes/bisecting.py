"""A search for the pass that broke a program."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

from galvatron.errors import PassError
from galvatron.ir.program import Program
from galvatron.passes.base import Pass
from galvatron.passes.pipeline import Pipeline


@dataclass(frozen=True)
class Culprit:
    """The pass that broke a program: its place in the pipeline, and what it got and gave (None when it raised)."""

    index: int
    pass_: Pass
    before: Program
    after: Program | None


def bisect(program: Program, pipeline: Pipeline, good: Callable[[Program], bool]) -> Culprit | None:
    """The first pass after which `good` no longer holds, or None when it holds to the end.

    Passes are pure, so each runs once and the intermediate programs are kept; `good`, usually the costly part, is
    called on a logarithmic number of them, on the assumption that a broken program stays broken. A pass that raises is
    the culprit when the program it got was still good.

    Raises:
        PassError: the program is not good to begin with.
    """
    programs = [program]
    pipeline.check(program.form)
    for pass_ in pipeline.passes:
        try:
            programs.append(pass_.run(programs[-1]))
        except Exception:
            break
    if not good(program):
        raise PassError("bisect: the program is not good before the first pass, so no pass broke it")
    last = len(programs) - 1
    broken = 1 + bisect_left(range(1, last + 1), True, key=lambda i: not good(programs[i]))
    if broken > len(pipeline.passes):
        return None
    after = programs[broken] if broken <= last else None
    return Culprit(broken - 1, pipeline.passes[broken - 1], programs[broken - 1], after)


def with_rewrites(pass_: Pass, most: int | None) -> Pass:
    """A pass that rewrites ops, and does the first so many rewrites only.

    Raises:
        PassError: it does not count them.
    """
    if all(field.name != "rewrites" for field in fields(pass_)):
        raise PassError(f"pass {pass_.name!r} does not count its rewrites")
    return replace(pass_, rewrites=most)  # type: ignore[call-arg]  # it has the option
