"""A search for the pass that broke a program, and within it for the rewrite."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cache

from galvatron.errors import PassError
from galvatron.ir.program import Program
from galvatron.passes.base import Pass, PassResult, Remark
from galvatron.passes.pipeline import Pipeline, Step, run_step


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
    if not good(program):
        raise PassError("bisect: the program is not good before the first pass, so no pass broke it")
    for index in range(len(pipeline.passes)):
        try:
            programs.append(run_step(Step(pipeline, index, programs[-1])).program)
        except Exception:
            break
    last = len(programs) - 1
    broken = 1 + bisect_left(range(1, last + 1), True, key=lambda i: not good(programs[i]))
    if broken > len(pipeline.passes):
        return None
    after = programs[broken] if broken <= last else None
    return Culprit(broken - 1, pipeline.passes[broken - 1], programs[broken - 1], after)


@dataclass(frozen=True)
class BrokenBy:
    """The first rewrite of a pass that broke a program: its number, from 1 on, where it was, and the programs with all
    rewrites before it, and with it (None when it raised)."""

    number: int
    remark: Remark
    before: Program
    after: Program | None


def first_rewrite(culprit: Culprit, good: Callable[[Program], bool]) -> BrokenBy | None:
    """The first rewrite of a pass after which `good` no longer holds; None where the pass does not count any, or is
    broken without them.

    The first rewrites of a run are those of any longer one, so that few runs are needed.

    Raises:
        PassError: `good` says of one program now this and now that.
    """
    if all(field.name != "rewrites" for field in fields(culprit.pass_)):
        return None
    results: dict[int, PassResult | None] = {}

    @cache
    def broken(most: int) -> bool:
        try:
            step = Step(Pipeline((with_rewrites(culprit.pass_, most),)), 0, culprit.before)
            results[most] = run_step(step)
        except Exception:
            results[most] = None
        result = results[most]
        return result is None or not good(result.program)

    most = 1
    while not broken(most):
        result = results[most]
        if result is None or sum(bool(remark.rule) for remark in result.remarks) < most:
            if result is not None and result.program == culprit.after:
                raise PassError(_FLAPS)
            return None
        most *= 2
    number = bisect_left(range(most + 1), True, key=broken)
    if number == 0:
        return None
    before, after = results[number - 1], results[number]
    assert before is not None
    if not good(before.program) or (after is not None and good(after.program)):
        raise PassError(_FLAPS)
    done = [remark for remark in (after or before).remarks if remark.rule]
    return BrokenBy(number, done[number - 1] if after else done[-1], before.program, after and after.program)


_FLAPS = (
    "bisect: the check gives different answers for the same program, so that no pass or rewrite can be named: make it "
    "one that depends on nothing but the program"
)


def with_rewrites(pass_: Pass, most: int | None) -> Pass:
    """A pass that rewrites ops, and does the first so many rewrites only.

    Raises:
        PassError: it does not count them.
    """
    if all(field.name != "rewrites" for field in fields(pass_)):
        raise PassError(f"pass {pass_.name!r} does not count its rewrites")
    return replace(pass_, rewrites=most)  # type: ignore[call-arg]  # it has the option
