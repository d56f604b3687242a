"""Writes into parts of a tensor as concatenations and choices.

Functionalised, `y[:, :3] = x` reads `copy` and `slice_scatter`: the new value of `y` is what is left of it beside `x`.
Written as `cat`, it has a derivative, a sharding rule and no trace of what it overwrites: the memory of `new_empty`
goes with its last element. A loop that fills a tensor step by step becomes one `cat`, since slices of a concatenation
are found in its parts.
"""

from __future__ import annotations

from dataclasses import replace

import sympy

from galvatron.ir.graph import Arg, Op, Ref
from galvatron.ir.types import BATCH, Dim, simplify_dim
from galvatron.passes.frontend.normalize.arguments import clamped
from galvatron.passes.frontend.normalize.indexing import counts
from galvatron.rewriting import Builder

_CAT = "aten.cat.default"


def slice_written(op: Op, build: Builder) -> Ref | None:
    """`slice_scatter` without gaps as `cat` of what stands before, the new part, and what stands behind."""
    arguments = op.arguments
    old, new, dim, step = (arguments[name] for name in ("self", "src", "dim", "step"))
    assert isinstance(dim, int)
    size = build.type_of(old).shape[dim]
    start, end = clamped(arguments["start"], size, 0), clamped(arguments["end"], size, size)
    length = build.type_of(new).shape[dim]
    # The slice that was written may have ended early.
    if step != 1 or simplify_dim(end - start) != length:
        return None
    return _replaced(old, new, dim, start, end, build)


def element_written(op: Op, build: Builder) -> Ref | None:
    """`select_scatter` as `cat`."""
    arguments = op.arguments
    old, new, dim, index = (arguments[name] for name in ("self", "src", "dim", "index"))
    assert isinstance(dim, int) and isinstance(index, (int, sympy.Expr))
    size = build.type_of(old).shape[dim]
    at = clamped(index, size, 0)
    shape = build.type_of(new).shape
    new = build.emit("aten.reshape.default", new, (*shape[:dim], 1, *shape[dim:]))
    return _replaced(old, new, dim, at, simplify_dim(at + 1), build)


def mask_written(op: Op, build: Builder) -> Ref | None:
    """`y[mask] = value` with one number for all as `where`."""
    arguments = op.arguments
    old, indices, value = (arguments[name] for name in ("self", "indices", "values"))
    assert isinstance(indices, tuple)
    given = [index for index in indices if index is not None]
    if len(given) != 1 or arguments["accumulate"] or build.type_of(given[0]).dtype != "bool":
        return None
    if build.type_of(value).numel != 1:
        return None
    mask, type_ = build.type_of(given[0]), op.result.type
    before = indices.index(given[0])
    aligned = (*(1,) * before, *mask.shape, *(1,) * (len(type_.shape) - before - len(mask.shape)))
    spread = build.reshape(given[0], aligned)
    number = build.cast(build.reshape(value, ()), type_.dtype)
    return build.emit("aten.where.self", spread, number, old, type_=type_)


def samples_written(op: Op, build: Builder) -> Ref | None:
    """`y[arange(B), i] = value`, with a position per sample, as `scatter`."""
    arguments = op.arguments
    old, indices, value = (arguments[name] for name in ("self", "indices", "values"))
    assert isinstance(indices, tuple)
    if len(indices) != 2 or not counts(indices[0], BATCH, build) or not isinstance(indices[1], Ref):
        return None
    type_, positions = op.result.type, build.type_of(indices[1])
    if type_.shape[0] != BATCH or positions.shape != (BATCH,) or positions.dtype in ("bool", "u8"):
        return None
    if build.type_of(indices[0]).shape != (BATCH,):
        return None
    rows = (BATCH, *type_.shape[2:])
    one = (BATCH, 1, *type_.shape[2:])
    row = build.emit("aten.remainder.Scalar", indices[1], type_.shape[1])
    row = build.expand(build.reshape(row, (BATCH, *(1,) * (len(one) - 1))), one)
    source = build.reshape(build.expand(value, rows), one)
    target = "aten.scatter_add.default" if arguments["accumulate"] else "aten.scatter.src"
    return build.emit(target, old, 1, row, source, type_=type_)


def joined(op: Op, build: Builder) -> Op | None:
    """`cat` of concatenations along the same dim as one."""
    parts, dim = op.args
    assert isinstance(parts, tuple)
    flat: list[Arg] = []
    for part in parts:
        inner = build.producer(part)
        nested = inner is not None and inner.target == _CAT and inner.args[1] == dim
        flat += inner.args[0] if nested and inner is not None and isinstance(inner.args[0], tuple) else (part,)
    return replace(op, args=(tuple(flat), dim)) if len(flat) > len(parts) else None


def part_of_joined(op: Op, build: Builder) -> Op | Ref | None:
    """A slice of a `cat` as the slices of its parts, and of a constant as a smaller one."""
    arguments = op.arguments
    source, dim, start, end = (arguments[name] for name in ("self", "dim", "start", "end"))
    made = build.producer(source)
    if made is None or arguments["step"] != 1:
        return None
    if made.target == "aten.full.default":
        return replace(made, args=(op.result.type.shape, *made.args[1:]), results=op.results, source=op.source)
    found = _parts_between(made, dim, start, end, build)
    if found is None:
        return None
    parts = tuple(_slice(part, dim, first, last, build) for part, first, last in found)
    return parts[0] if len(parts) == 1 else replace(op, target=_CAT, args=(parts, dim), kwargs=())


def element_of_joined(op: Op, build: Builder) -> Op | None:
    """An element of a `cat` as one of the part that has it."""
    arguments = op.arguments
    source, dim, index = (arguments[name] for name in ("self", "dim", "index"))
    made = build.producer(source)
    assert isinstance(dim, int)
    if made is None or not isinstance(index, int):
        return None
    at = clamped(index, build.type_of(source).shape[dim], 0)
    found = _parts_between(made, dim, at, simplify_dim(at + 1), build)
    if found is None or len(found) != 1:
        return None
    part, first, _ = found[0]
    return replace(op, args=(part, dim, first), kwargs=())


def _parts_between(made: Op, dim: Arg, start: Arg, end: Arg, build: Builder) -> list[tuple[Ref, Dim, Dim]] | None:
    """The parts of a `cat` along `dim` that a range touches, each with its own range; None where that is not known."""
    if made.target != _CAT or made.args[1] != dim or not isinstance(dim, int):
        return None
    parts = made.args[0]
    assert isinstance(parts, tuple)
    found: list[tuple[Ref, Dim, Dim]] = []
    edge: Dim = 0
    for part in parts:
        assert isinstance(part, Ref)
        length = build.type_of(part).shape[dim]
        first, last = _difference(start, edge), _difference(end, edge)
        if first is None or last is None or not isinstance(length, int):
            return None
        if first < length and last > 0 and first < last:
            found.append((part, max(first, 0), min(last, length)))
        edge = simplify_dim(edge + length)
    return found or None


def _difference(position: Arg, edge: Dim) -> int | None:
    """How far a position is behind an edge, if the same for every batch size."""
    if not isinstance(position, (int, sympy.Expr)):
        return None
    difference = simplify_dim(position - edge)
    return difference if isinstance(difference, int) else None


def _replaced(old: Arg, new: Arg, dim: int, start: Dim, end: Dim, build: Builder) -> Ref:
    type_ = build.type_of(old)
    before, behind = _slice(old, dim, 0, start, build), _slice(old, dim, end, type_.shape[dim], build)
    kept = tuple(part for part in (before, new, behind) if build.type_of(part).shape[dim] != 0)
    if len(kept) == 1:
        assert isinstance(kept[0], Ref)
        return kept[0]
    return build.emit(_CAT, kept, dim, type_=type_)


def _slice(source: Arg, dim: Arg, start: Dim, end: Dim, build: Builder) -> Ref:
    assert isinstance(source, Ref) and isinstance(dim, int)
    type_ = build.type_of(source)
    length = simplify_dim(end - start)
    if length == type_.shape[dim]:
        return source
    shape = (*type_.shape[:dim], length, *type_.shape[dim + 1 :])
    return build.emit("aten.slice.Tensor", source, dim, start, end, type_=type_.with_shape(shape))
