"""One way to write the arguments of an op: in the schema's order, sizes written out, dims counted from the front."""

from __future__ import annotations

import sympy

from galvatron.ir.graph import Arg, Op
from galvatron.ir.ops.table import operator_of
from galvatron.ir.types import Dim, simplify_dim
from galvatron.rewriting import Builder
from galvatron.rewriting.arguments import DIMS, written


def canonical_arguments(op: Op, build: Builder) -> Op:
    """Writes sizes out (no -1), dims from the front and always, and leaves out what equals its default."""
    arguments = dict(op.arguments)
    if size := operator_of(op).size:
        arguments[size] = op.result.type.shape
    rank = _rank(op, build)
    for name in arguments.keys() & DIMS:
        arguments[name] = _from_the_front(arguments[name], rank)
    if op.target == "aten.slice.Tensor":
        arguments |= _slice_bounds(arguments, build)
    return written(op, arguments)


def _rank(op: Op, build: Builder) -> int:
    if not op.operands:
        return 0
    rank = len(build.types[op.operands[0]].shape)
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
