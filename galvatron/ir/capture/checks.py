"""Checks of values that only raise or report: `if torch.isnan(x).any(): raise ...`, `assert mask.any()`.

A program has no values while it is captured, so no branch on one can be taken. A check is the exception: what follows
where it passes is the whole computation. That it passes is noted, to become a check of the program
(`capture.conditions`). One that does not raise, or that nothing can be noted of, is left out, with a warning that names
its line.
"""

from __future__ import annotations

import ast
import dis
import linecache
import sys
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any

import torch

from galvatron.ir.capture.running import line_running
from galvatron.ir.capture.sources import is_user_file, located, source_of_line
from galvatron.ir.graph import Source
from galvatron.ir.results import leave_out

_REPORTS = frozenset({"warn", "warning", "warning_once", "info", "debug", "error", "exception", "log", "print"})
_SAID_CHARACTERS = 300


@dataclass(frozen=True)
class Noted:
    """A condition that a check has asked for: the model goes on where the truth of `value` is `wanted`, and otherwise
    raises what is `said`."""

    value: torch.Tensor
    wanted: bool
    source: Source
    said: str

    def __str__(self) -> str:
        return f"{located(self.source)}{self.said}"


_notes: list[list[Noted]] = []
"""What is noted by those who keep checks, the innermost of them last."""


@contextmanager
def noting(wanted: bool) -> Iterator[list[Noted]]:
    """Notes the checks of a forward inside the `with` block, in order, if they are wanted."""
    found: list[Noted] = []
    if not wanted:
        yield found
        return
    _notes.append(found)
    try:
        yield found
    finally:
        _notes.pop()


def noted_so_far() -> int:
    """How many checks have been noted of the forward that is running."""
    return len(_notes[-1]) if _notes else 0


def note(value: torch.Tensor, wanted: bool, said: str) -> None:
    """Notes what a program cannot do without: where the truth of a value is another, the line that is running raises
    what is said."""
    source = line_running()
    assert source is not None
    if _notes:
        _notes[-1].append(Noted(value, wanted, source, said))
    else:
        leave_out(located(source))


def passing(frame: types.FrameType, value: Any) -> bool | None:
    """The truth value for a condition on values with which the check at a frame passes; None where there is no check.

    Notes the check, or warns that it is left out.
    """
    found = _checks(frame)
    if len({truth for truth, _ in found}) != 1:
        return None
    truth, said = found[0]
    source = line_running() or source_of_line(frame.f_code.co_filename, frame.f_lineno)
    is_of_forward = isinstance(value, torch.Tensor) and not torch._C._are_functorch_transforms_active()
    if said and len(found) == 1 and is_of_forward and _notes and not _is_caught(frame):
        _notes[-1].append(Noted(value, truth, source, said))
    else:
        leave_out(located(source))
    return truth


def _checks(frame: types.FrameType) -> list[tuple[bool, str]]:
    """For each check that asks for the condition at a frame, the value with which it passes, and what it raises if this
    condition alone decides that; else nothing."""
    return [
        (truth, _raised(statement, frame.f_locals) if decides else "")
        for statement in statements(frame.f_code.co_filename)
        if (wanted := _passes_with(statement)) is not None and not _names_a_result_that_may_be_missing(statement.test)
        for condition, truth, decides in _conditions(statement.test, wanted)
        if is_asked(condition, frame)
    ]


def _is_caught(frame: types.FrameType | None) -> bool:
    """Whether the model itself may catch what is raised at a frame, and go on."""
    while frame is not None and not frame.f_code.co_filename.endswith("galvatron/ir/capture/export.py"):
        file, line = frame.f_code.co_filename, frame.f_lineno
        if is_user_file(file) and any(first <= line <= last for first, last in _caught(file)):
            return True
        frame = frame.f_back
    return False


def is_asked(condition: ast.expr, frame: types.FrameType) -> bool:
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


def _conditions(test: ast.expr, wanted: bool, decides: bool = True) -> Iterator[tuple[ast.expr, bool, bool]]:
    """The conditions that a test is made of, each with the value that makes the test what is wanted, and whether with
    the other value, whenever it is asked for, the test is not what is wanted."""
    if isinstance(test, ast.BoolOp):
        each_decides = isinstance(test.op, ast.And) == wanted
        for part in test.values:  # what is asked for last decides as well
            yield from _conditions(part, wanted, decides and (each_decides or part is test.values[-1]))
    elif isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        yield from _conditions(test.operand, not wanted, decides)
    else:
        yield test, wanted, decides


def _raised(statement: ast.If | ast.Assert, names: Mapping[str, Any]) -> str:
    """What a check raises, as `ValueError: not a number`; nothing where it only reports."""
    if isinstance(statement, ast.Assert):
        name, message = "AssertionError", statement.msg
    else:
        last = statement.body[-1] if _only_raises(statement.body) else (statement.orelse or statement.body)[-1]
        if not isinstance(last, ast.Raise):
            return ""
        error = last.exc
        called = isinstance(error, ast.Call)
        name = ast.unparse(error.func if called else error) if error is not None else "the error that it handles"
        message = error.args[0] if called and error.args else None
    said = name if message is None else f"{name}: {_words(message, names)}"
    return " ".join(said.split())[:_SAID_CHARACTERS]


def _words(message: ast.expr, names: Mapping[str, Any]) -> str:
    """A text as far as it is known before it is computed."""
    if isinstance(message, ast.Constant):
        return str(message.value)
    if isinstance(message, ast.JoinedStr):
        return "".join(_words(part, names) for part in message.values)
    if isinstance(message, ast.Name) and type(known := names.get(message.id)) in (str, int, float):
        return str(known)
    if isinstance(message, ast.FormattedValue):
        words = _words(message.value, names)
        return f"{{{words}}}" if words == ast.unparse(message.value) else words
    return ast.unparse(message)


def statements(file: str) -> tuple[ast.If | ast.Assert, ...]:
    """The statements of a file that may be checks or branches."""
    return tuple(node for node in _nodes(file) if isinstance(node, (ast.If, ast.Assert)))


def calls_of(file: str) -> tuple[ast.Call, ...]:
    """The calls in a file."""
    return tuple(node for node in _nodes(file) if isinstance(node, ast.Call))


@lru_cache(maxsize=64)
def _caught(file: str) -> tuple[tuple[int, int], ...]:
    """The lines, from first to last, of a file in which an error may be caught or passed over."""
    bodies = (
        node.body
        for node in _nodes(file)
        if (isinstance(node, ast.Try) and node.handlers)
        or (isinstance(node, ast.With) and any("suppress" in ast.unparse(item) for item in node.items))
    )
    return tuple((body[0].lineno, body[-1].end_lineno or body[-1].lineno) for body in bodies)


@lru_cache(maxsize=64)
def _nodes(file: str) -> tuple[ast.AST, ...]:
    """The conditions, guarded blocks and calls of a file."""
    try:
        tree = ast.parse("".join(linecache.getlines(file)))
    except SyntaxError:
        return ()
    return tuple(node for node in ast.walk(tree) if isinstance(node, (ast.If, ast.Assert, ast.Try, ast.With, ast.Call)))
