"""Branches on values that only clamp what some names stand for: `if not h.isfinite().all(): h = torch.clamp(h, ...)`.

A program has no values while it is captured, so no branch on one can be taken. But what the names stand for after this
one is a choice between two tensors: the body is run beside the frame, the names are given `torch.where` of the
condition, and the model goes on as if it had not taken the branch.
"""

from __future__ import annotations

import ast
import ctypes
import sys
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from galvatron.ir.capture.checks import is_asked, statements
from galvatron.ir.capture.diagnose import on_values
from galvatron.ir.capture.sources import source_of_line
from galvatron.ir.graph import Source

_CHANGES = frozenset({"clamp", "clip", "clamp_min", "clamp_max", "nan_to_num"})
"""Functions of tensors that a body may call: nothing but a result, and where nobody asks for that, its gradient of zero
makes gradients of zero, whatever the values are."""

_READS = frozenset({"finfo", "iinfo"})
_EXPRESSIONS = (
    ast.Name, ast.Attribute, ast.Constant, ast.Call, ast.keyword, ast.BinOp, ast.UnaryOp, ast.expr_context,
    ast.operator, ast.unaryop,
)  # fmt: skip


def chosen(frame: types.FrameType, condition: Any) -> bool | None:
    """The truth value for a condition on values with which a frame goes on after a branch, once its names stand for the
    choice; None where the branch does more than that."""
    if not isinstance(condition, torch.Tensor) or torch._C._are_functorch_transforms_active():
        return None
    found = list(_branches(frame))
    if len(found) != 1:
        return None
    body, skips = found[0]
    before = dict(frame.f_locals)
    after = _after(frame, body)
    if not after or not all(_is_choice(before.get(name), value) for name, value in after.items()):
        return None
    scalar = condition.reshape(()) if condition.dim() else condition
    truth = scalar if scalar.dtype == torch.bool else scalar != 0
    names = {name: before[name] for name, value in after.items() if isinstance(value, torch.Tensor)}
    choices = {n: torch.where(truth, *((old, after[n]) if skips else (after[n], old))) for n, old in names.items()}
    source = source_of_line(frame.f_code.co_filename, frame.f_lineno)
    _kept.extend((tensor, tensor._version, source) for tensor in (*names.values(), *choices.values()))
    _assign(frame, choices)
    return skips


_kept: list[tuple[torch.Tensor, int, Source]] = []
"""The tensors on both sides of a choice, with their versions: where the model goes on with the very tensor that it had,
what is written into one of them is in the other."""


@contextmanager
def choosing() -> Iterator[None]:
    """Around a forward in which names may be given choices.

    Raises:
        CaptureError: it writes into a tensor that may be another one by a choice; names the line of that.
    """
    try:
        yield
        for tensor, version, source in _kept:
            if tensor._version != version:
                raise on_values(source)
    finally:
        _kept.clear()


def _is_choice(old: Any, new: Any) -> bool:
    """Whether a name of a frame may stand for one of two values; for a number only where the body alone needs it."""
    if isinstance(new, torch.Tensor):
        return isinstance(old, torch.Tensor) and old.shape == new.shape and old.dtype == new.dtype
    return isinstance(new, (int, float)) and (old is None or old == new)


def _assign(frame: types.FrameType, values: Mapping[str, Any]) -> None:
    """Gives names of a running frame other values."""
    frame.f_locals.update(values)
    if sys.version_info < (3, 13):  # before, `f_locals` is a copy
        ctypes.pythonapi.PyFrame_LocalsToFast(ctypes.py_object(frame), ctypes.c_int(0))


def _branches(frame: types.FrameType) -> Iterator[tuple[list[ast.stmt], bool]]:
    """The bodies of the branches that a frame is about to decide by one condition, and its value that skips each."""
    for statement in statements(frame.f_code.co_filename):
        if isinstance(statement, ast.If) and not statement.orelse:
            condition, skips = _last(statement.test, False)
            if is_asked(condition, frame):
                yield statement.body, skips


def _last(test: ast.expr, wanted: bool) -> tuple[ast.expr, bool]:
    """The condition that decides a test where those before it, which are known, have not, and its value that makes the
    test what is wanted."""
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        return _last(test.operand, not wanted)
    if isinstance(test, ast.BoolOp):
        return _last(test.values[-1], wanted)
    return test, wanted


def _assigned(statement: ast.stmt) -> str | None:
    """The name to which a statement gives a value, if it does nothing besides."""
    targets = statement.targets if isinstance(statement, ast.Assign) else []
    is_plain = all(isinstance(node, (*_EXPRESSIONS, ast.Assign)) for node in ast.walk(statement))
    return targets[0].id if len(targets) == 1 and isinstance(targets[0], ast.Name) and is_plain else None


class _OnlyChanges(TorchFunctionMode):
    """Refuses functions of tensors but those that a body may call."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func.__name__ not in {*_CHANGES, "__get__"}:
            raise _DoesMore
        return func(*args, **(kwargs or {}))


class _DoesMore(Exception):
    """A body computes what is not among `_CHANGES`."""


def _after(frame: types.FrameType, body: list[ast.stmt]) -> dict[str, Any]:
    """What the names that a branch assigns would stand for after its body; nothing if that may do more."""
    names: dict[str, Any] = {**frame.f_globals, **frame.f_locals}
    assigned = list(map(_assigned, body))
    calls = (node for one in body for node in ast.walk(one) if isinstance(node, ast.Call))
    if None in assigned or not all(_is_of_torch(call.func, names) for call in calls):
        return {}
    code = compile(ast.Module([*body], []), frame.f_code.co_filename, "exec")
    try:
        with _OnlyChanges():
            exec(code, names)
    except _DoesMore:
        return {}
    return {name: names[name] for name in assigned if name is not None}


def _is_of_torch(function: ast.expr, names: Mapping[str, Any]) -> bool:
    """Whether it is certain that a function is one of those that a body may call: `torch.clamp`, or `h.clamp`."""
    if not isinstance(function, ast.Attribute) or not isinstance(function.value, ast.Name):
        return False
    owner = names.get(function.value.id)
    return function.attr in (
        _CHANGES | _READS if owner is torch else _CHANGES if isinstance(owner, torch.Tensor) else ()
    )
