"""Checks of values that only raise or report: `if torch.isnan(x).any(): raise ...`, `assert mask.any()`.

A program has no values while it is captured, so no branch on one can be taken. A check is the exception: what follows
where it passes is the whole computation. It is left out, with a warning that names its line.
"""

from __future__ import annotations

import ast
import dis
import linecache
import types
import warnings
from collections.abc import Iterator
from functools import lru_cache

from galvatron.ir.capture.sources import located, source_of_line

_REPORTS = frozenset({"warn", "warning", "warning_once", "info", "debug", "error", "exception", "log", "print"})


def passing(frame: types.FrameType) -> bool | None:
    """The truth value for a condition on values with which the check at a frame passes; None where there is no check.

    Warns that the check is left out.
    """
    value = _value(frame)
    if value is not None:
        source = source_of_line(frame.f_code.co_filename, frame.f_lineno)
        message = f"{located(source)}this check of values is no part of the program and is left out"
        warnings.warn(message, stacklevel=2)
    return value


def _value(frame: types.FrameType) -> bool | None:
    for statement in _statements(frame.f_code.co_filename):
        wanted = _passes_with(statement)
        end_line = statement.test.end_lineno or statement.lineno
        if wanted is None or not statement.lineno <= frame.f_lineno <= end_line:
            continue
        truths = [truth for _, truth in _conditions(statement.test, wanted)]
        asked = _number_of_condition(frame, statement.lineno, end_line, len(truths))
        if asked is not None:
            return truths[asked]
        return truths[0] if len(set(truths)) == 1 else None
    return None


def _number_of_condition(frame: types.FrameType, first: int, last: int, count: int) -> int | None:
    """Which of the conditions in some lines is being decided: each is one jump, in the order of the text."""
    line, jumps = frame.f_code.co_firstlineno, []
    for instruction in dis.get_instructions(frame.f_code):
        line = instruction.starts_line or line
        if "JUMP" in instruction.opname and "_IF_" in instruction.opname and first <= line <= last:
            jumps.append(instruction.offset)
    return next((i for i, jump in enumerate(jumps) if jump >= frame.f_lasti), None) if len(jumps) == count else None


def _passes_with(statement: ast.If | ast.Assert) -> bool | None:
    """The value of its test with which a statement neither raises nor reports; None where it does something else."""
    if isinstance(statement, ast.Assert):
        return True
    if _only_reports(statement.body):
        return False
    return True if statement.orelse and _only_reports(statement.orelse) else None


def _only_reports(body: list[ast.stmt]) -> bool:
    return all(isinstance(s, ast.Raise) or (isinstance(s, ast.Expr) and _is_report(s.value)) for s in body)


def _is_report(call: ast.expr) -> bool:
    if not isinstance(call, ast.Call):
        return False
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    return name in _REPORTS


def _conditions(test: ast.expr, wanted: bool) -> Iterator[tuple[ast.expr, bool]]:
    """The conditions that a test is made of, each with the value that makes the test what is wanted."""
    if isinstance(test, ast.BoolOp):
        for part in test.values:
            yield from _conditions(part, wanted)
    elif isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        yield from _conditions(test.operand, not wanted)
    else:
        yield test, wanted


@lru_cache(maxsize=64)
def _statements(file: str) -> tuple[ast.If | ast.Assert, ...]:
    try:
        tree = ast.parse("".join(linecache.getlines(file)))
    except SyntaxError:
        return ()
    return tuple(node for node in ast.walk(tree) if isinstance(node, (ast.If, ast.Assert)))
