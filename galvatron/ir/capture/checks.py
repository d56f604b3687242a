"""Checks of values that only raise or report: `if torch.isnan(x).any(): raise ...`, `assert mask.any()`.

A program has no values while it is captured, so no branch on one can be taken. A check is the exception: what follows
where it passes is the whole computation. It is left out, with a warning that names its line.
"""

from __future__ import annotations

import ast
import dis
import linecache
import sys
import types
import warnings
from collections.abc import Iterator
from functools import lru_cache
from itertools import islice

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
    found = {
        truth
        for statement in _statements(frame.f_code.co_filename)
        if (wanted := _passes_with(statement)) is not None and not _names_a_result_that_may_be_missing(statement.test)
        for condition, truth in _conditions(statement.test, wanted)
        if _is_asked(condition, frame)
    }
    return found.pop() if len(found) == 1 else None


def _is_asked(condition: ast.expr, frame: types.FrameType) -> bool:
    """Whether a frame is about to decide a condition: the instruction before computed what is at its end."""
    if sys.version_info >= (3, 11):
        code, before = frame.f_code, frame.f_lasti // 2 - 1
        while code.co_code[2 * before] == dis.EXTENDED_ARG:
            before -= 1
        _, end_line, _, end_column = next(islice(code.co_positions(), before, None))
        return (condition.end_lineno, condition.end_col_offset) == (end_line, end_column)
    nested = any(isinstance(node, (ast.IfExp, ast.BoolOp, ast.comprehension)) for node in ast.walk(condition))
    return not nested and condition.lineno <= frame.f_lineno <= (condition.end_lineno or condition.lineno)


def _passes_with(statement: ast.If | ast.Assert) -> bool | None:
    """The value of its test with which a statement neither raises nor reports; None where it does something else."""
    if isinstance(statement, ast.Assert):
        return True
    if _only_raises(statement.body) or (not statement.orelse and _only_reports(statement.body)):
        return False
    return True if _only_raises(statement.orelse) else None


def _only_raises(body: list[ast.stmt]) -> bool:
    return bool(body) and isinstance(body[-1], ast.Raise) and _only_reports(body[:-1])


def _only_reports(body: list[ast.stmt]) -> bool:
    return all(isinstance(statement, ast.Expr) and _is_report(statement.value) for statement in body)


def _is_report(call: ast.expr) -> bool:
    """Whether a call only says something, and what it says changes nothing as it is computed."""
    if not isinstance(call, ast.Call):
        return False
    inner = [node for node in ast.walk(call) if node is not call]
    writes = any(isinstance(node, ast.Call) and _name_of(node).endswith("_") for node in inner)
    return _name_of(call) in _REPORTS and not writes and not any(isinstance(node, ast.NamedExpr) for node in inner)


def _name_of(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def _names_a_result_that_may_be_missing(test: ast.expr) -> bool:
    """Whether a test of several conditions, of which a later one may not be computed, assigns something (`:=`)."""
    nodes = list(ast.walk(test))
    return any(isinstance(n, ast.BoolOp) for n in nodes) and any(isinstance(n, ast.NamedExpr) for n in nodes)


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
