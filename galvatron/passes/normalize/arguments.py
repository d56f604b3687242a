"""One way to write the arguments of an op: in the schema's order, sizes written out, dims counted from the front."""

from __future__ import annotations

from dataclasses import replace

import sympy

from galvatron.ir.graph import Arg, Op, Ref
from galvatron.ir.ops.schemas import MEANINGLESS, Parameter, Required, schema_of
from galvatron.ir.ops.table import operator_of
from galvatron.ir.types import Dim, simplify_dim
from galvatron.passes.normalize.rewriter import Builder

_DIM_PARAMETERS = frozenset({"dim", "dims", "dim0", "dim1", "dim2", "start_dim", "end_dim", "source", "destination"})


def with_arguments(op: Op, **changes: Arg) -> Op:
    """The op with some arguments changed, by parameter name."""
    return _written(op, op.arguments | changes)


def canonical_arguments(op: Op, build: Builder) -> Op:
    """Writes sizes out (no -1), dims from the front and always, and leaves out what equals its default."""
    arguments = dict(op.arguments)
    if size := operator_of(op).size:
        arguments[size] = op.result.type.shape
    rank = _rank(op, build)
    for name in arguments.keys() & _DIM_PARAMETERS:
        arguments[name] = _from_the_front(arguments[name], rank)
    if op.target == "aten.slice.Tensor":
        arguments |= _slice_bounds(arguments, build)
    return _written(op, arguments)


def _written(op: Op, arguments: dict[str, Arg]) -> Op:
    parameters = schema_of(op.target).parameters
    positional, named = [p for p in parameters if not p.keyword_only], [p for p in parameters if p.keyword_only]
    while positional and _is_omitted(positional[-1], arguments):
        positional.pop()
    return replace(
        op,
        args=tuple(arguments[p.name] for p in positional),
        kwargs=tuple((p.name, arguments[p.name]) for p in named if not _is_omitted(p, arguments)),
    )


def _is_omitted(parameter: Parameter, arguments: dict[str, Arg]) -> bool:
    if parameter.name in MEANINGLESS and not isinstance(parameter.default, Required):
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
    return rank + 1 if operator_of(op).grows else max(rank, 1)


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
