"""What the statements of a loop say of its turns: whether anything of Python goes from one of them to the next."""

from __future__ import annotations

import ast
import dis
import linecache
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import islice
from typing import Any

import torch
from torch import nn

_ENDS = (
    ast.Break, ast.Return, ast.Raise, ast.Assert, ast.Yield, ast.YieldFrom, ast.Await, ast.Try, ast.Delete, ast.Global,
    ast.Nonlocal, ast.NamedExpr, ast.FunctionDef, ast.ClassDef, ast.Lambda, ast.Import, ast.ImportFrom, ast.For,
    ast.While, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp,
)  # fmt: skip
"""What no turn may have: it ends the loop, or does more than to compute."""

_VALUES = (
    torch.Tensor, nn.Module, bool, int, float, str, type(None), torch.Size, torch.dtype, torch.device, torch.SymInt,
    types.FunctionType, types.BuiltinFunctionType, types.ModuleType, type,
)  # fmt: skip
"""What a turn may read: nothing in which Python keeps something."""


def loop_begun(frame: types.FrameType) -> ast.For | None:
    """The loop that a frame is about to begin, if it leaves nothing but tensors to what comes after a turn: it writes
    only into these, and what it gives names is read by nobody else."""
    if sys.version_info < (3, 11) or dis.opname[frame.f_code.co_code[frame.f_lasti]] != "GET_ITER":
        return None
    place = next(islice(frame.f_code.co_positions(), frame.f_lasti // 2, None))
    found = [one for one in _loops(frame.f_code.co_filename) if place in map(_place, (one[0], one[0].iter))]
    if len(found) != 1:
        return None
    loop, function = found[0]
    names = {**frame.f_globals, **frame.f_locals}
    return loop if _only_writes_tensors(loop, names) and _keeps_names(loop, function) else None


@lru_cache(maxsize=64)
def _loops(file: str) -> tuple[tuple[ast.For, ast.AST], ...]:
    """The loops of a file, each with the function that it is in."""
    try:
        tree = ast.parse("".join(linecache.getlines(file)))
    except SyntaxError:
        return ()

    def within(node: ast.AST, function: ast.AST) -> Iterator[tuple[ast.For, ast.AST]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.For):
                yield child, function
            yield from within(child, child if isinstance(child, ast.FunctionDef) else function)

    return tuple(within(tree, tree))


def _place(node: ast.stmt | ast.expr) -> tuple[int | None, ...]:
    return node.lineno, node.end_lineno, node.col_offset, node.end_col_offset


def _only_writes_tensors(loop: ast.For, names: Mapping[str, Any]) -> bool:
    """Whether a turn computes, gives names to what it computes, and calls methods of tensors, and no more."""
    inside = [node for statement in loop.body for node in ast.walk(statement)]
    read = {node.id for node in inside if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    return (
        not loop.orelse
        and not any(isinstance(node, _ENDS) for node in inside)
        and all(_is_value(names[name]) for name in read if name in names)
        and all(_is_plain(statement, names) for statement in _statements(loop.body))
    )


def _is_value(value: Any) -> bool:
    return all(map(_is_value, value)) if type(value) is tuple else isinstance(value, _VALUES)


def _statements(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements in order, those under `torch.no_grad()` among them."""
    for statement in body:
        if isinstance(statement, ast.With) and all(ast.unparse(i) == "torch.no_grad()" for i in statement.items):
            yield from _statements(statement.body)
        else:
            yield statement


def _is_plain(statement: ast.stmt, names: Mapping[str, Any]) -> bool:
    if isinstance(statement, ast.Assign):
        return all(isinstance(name, ast.Name) for target in statement.targets for name in _parts(target))
    if isinstance(statement, ast.If):
        return [type(one) for one in (*statement.body, *statement.orelse)] == [ast.Continue]
    if not isinstance(statement, ast.Expr) or not isinstance(statement.value, ast.Call):
        return False
    method = statement.value.func
    owner = method.value if isinstance(method, ast.Attribute) else None
    return isinstance(owner, ast.Name) and isinstance(names.get(owner.id), torch.Tensor)


def _parts(target: ast.expr) -> list[ast.expr]:
    parts = target.elts if isinstance(target, (ast.Tuple, ast.List)) else None
    return [target] if parts is None else [one for part in parts for one in _parts(part)]


def _keeps_names(loop: ast.For, function: ast.AST) -> bool:
    """Whether what a turn gives names is read in that turn alone, after that."""
    known = set(_named(loop.target, ast.Store))
    assigned = known.union(*(_named(statement, ast.Store) for statement in loop.body))
    outside = [node for node in ast.walk(function) if isinstance(node, ast.Name)]
    inside = {id(node) for node in ast.walk(loop)}
    if any(node.id in assigned and isinstance(node.ctx, ast.Load) for node in outside if id(node) not in inside):
        return False
    for statement in _statements(loop.body):
        if (_named(statement, ast.Load) & assigned) - known:
            return False
        known |= _named(statement, ast.Store)
    return True


def _named(node: ast.AST, context: type[ast.expr_context]) -> set[str]:
    return {one.id for one in ast.walk(node) if isinstance(one, ast.Name) and isinstance(one.ctx, context)}
