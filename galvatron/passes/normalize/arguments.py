"""One way to write the arguments of an op: in the schema's order, sizes written out, dims counted from the front."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cache
from typing import Any

import sympy

from galvatron.errors import GalvatronError
from galvatron.ir.graph import Arg, Op, Ref
from galvatron.ir.types import Dim, simplify_dim
from galvatron.passes.normalize.rewriter import Builder

_DIM_PARAMETERS = frozenset({"dim", "dims", "dim0", "dim1", "dim2", "start_dim", "end_dim", "source", "destination"})
_MEANINGLESS = frozenset({"cudnn_enable", "cudnn_enabled", "non_blocking"})
_SIZED_BY_RESULT = {
    "aten.reshape.default": "shape",
    "aten.expand.default": "size",
    "aten.full.default": "size",
}
_RANK_GROWS = ("aten.unsqueeze.default", "aten.stack.default", "aten.diag_embed.default")
_REQUIRED = object()


@dataclass(frozen=True)
class Parameter:
    """A parameter of an operator's schema."""

    name: str
    default: Any
    keyword_only: bool


@cache
def parameters(target: str) -> tuple[Parameter, ...] | None:
    """The parameters of an operator in order, or None when this torch does not have it."""
    from galvatron.ir.interpreter import torch_op

    try:
        schema = torch_op(target)._schema  # type: ignore[attr-defined]  # of an OpOverload
    except GalvatronError:
        return None
    return tuple(
        Parameter(a.name, _as_arg(a.default_value) if a.has_default_value() else _REQUIRED, a.kwarg_only)
        for a in schema.arguments
    )


def bound(op: Op) -> dict[str, Arg]:
    """The arguments of an op by parameter name, defaults included."""
    schema = parameters(op.target) or ()
    given = {p.name: a for p, a in zip(schema, op.args, strict=False)} | dict(op.kwargs)
    return {p.name: given.get(p.name, p.default) for p in schema}


def with_arguments(op: Op, **changes: Arg) -> Op:
    """The op with some arguments changed, by parameter name."""
    return _written(op, bound(op) | changes)


def canonical_arguments(op: Op, build: Builder) -> Op | None:
    """Writes sizes out (no -1), dims from the front and always, and leaves out what equals its default."""
    if parameters(op.target) is None:
        return None
    arguments = bound(op)
    if op.target in _SIZED_BY_RESULT:
        arguments[_SIZED_BY_RESULT[op.target]] = op.result.type.shape
    rank = _rank(op, build)
    for name in arguments.keys() & _DIM_PARAMETERS:
        arguments[name] = _from_the_front(arguments[name], rank)
    if op.target == "aten.slice.Tensor":
        arguments |= _slice_bounds(arguments, build)
    return _written(op, arguments)


def _written(op: Op, arguments: dict[str, Arg]) -> Op:
    schema = parameters(op.target) or ()
    positional = [p for p in schema if not p.keyword_only]
    while positional and _is_omitted(positional[-1], arguments):
        positional.pop()
    return dataclasses.replace(
        op,
        args=tuple(arguments[p.name] for p in positional),
        kwargs=tuple((p.name, arguments[p.name]) for p in schema if p.keyword_only and not _is_omitted(p, arguments)),
    )


def _is_omitted(parameter: Parameter, arguments: dict[str, Arg]) -> bool:
    if parameter.name in _MEANINGLESS and parameter.default is not _REQUIRED:
        return True
    value = arguments[parameter.name]
    if parameter.name in _DIM_PARAMETERS and value is not None:
        return False
    return value is parameter.default or (
        not isinstance(value, Ref)
        and isinstance(value, bool) == isinstance(parameter.default, bool)
        and value == parameter.default
    )


def _rank(op: Op, build: Builder) -> int:
    if not op.operands:
        return 0
    rank = len(build.values[op.operands[0]].type.shape)
    return rank + 1 if op.target in _RANK_GROWS else max(rank, 1)


def _from_the_front(dim: Arg, rank: int) -> Arg:
    if isinstance(dim, tuple):
        return tuple(_from_the_front(d, rank) for d in dim)
    return dim + rank if isinstance(dim, int) and dim < 0 else dim


def _slice_bounds(arguments: dict[str, Arg], build: Builder) -> dict[str, Arg]:
    dim = arguments["dim"]
    assert isinstance(dim, int)
    size = build.type_of(arguments["self"]).shape[dim]
    return {"start": clamped(arguments["start"], size, 0), "end": clamped(arguments["end"], size, size)}


def clamped(position: Arg, size: Dim, default: Dim) -> Dim:
    """A bound of a slice counted from the front and inside a dim of `size`; `default` where there is none."""
    if position is None:
        return default
    assert isinstance(position, (int, sympy.Expr))
    if isinstance(position, int) and position < 0:
        position = simplify_dim(position + size)
        return max(position, 0) if isinstance(position, int) else position
    if isinstance(position, int) and isinstance(size, int):
        return min(position, size)
    return size if position == 2**63 - 1 else position


def _as_arg(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
