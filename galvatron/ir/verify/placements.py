"""Whether an op on slices computes what the op on whole tensors does: placements checked against the rule table.

On every mesh axis an op runs in one of these ways, and its operands and results say which:

- whole on every rank (`R` to `R`), or, where its backward is linear, whole with gradients that add up (`R'` to `R'`);
- on partial sums, where it is linear in what is partial;
- along one named dimension: whatever has it is sharded along the same part of it, whatever has it not is `R'`, or `P`
  where it is added to a sum over that dimension;
- as an op of `ir.spmd`, which communicates inside.

A value without a gradient is `R` where `R'` is asked for. Which elements a shard holds is told by the name of its
dimension and by how many of its elements lie within one of the stretches that the axis cuts: `Shard(dim, outer)` of
different tensors means one thing where both agree.

`ways` says which way it is on each axis, and so why an op is legal; for one that is not, `mending` looks for the change
that would make it so.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

import sympy

from galvatron.errors import GalvatronError
from galvatron.ir.functions import call_problem
from galvatron.ir.gradients import takes_terms
from galvatron.ir.graph import Op, Value
from galvatron.ir.layout import BROADCAST, PARTIAL, REPLICATE, Mesh, Partial, Replicate, Shard, padded_part, same_factor
from galvatron.ir.ops.notation import OpDims
from galvatron.ir.ops.rows import acts_on_rows
from galvatron.ir.ops.sizes import ShapeError, same_shape
from galvatron.ir.ops.table import op_dims
from galvatron.ir.random import without_site
from galvatron.ir.spmd import is_spmd, on_slices, spmd_target, without_axis
from galvatron.ir.types import Dim, divides, exact_quotient, simplify_dim
from galvatron.ir.verify.computed import computed_problem
from galvatron.ir.verify.mending import op_mended
from galvatron.ir.verify.placed import Misplaced, Placed
from galvatron.ir.verify.shapes import expected_shapes

Factor = tuple[str, Dim, bool, str]
"""What an axis shards: a named dimension, in stretches of so many elements of it, each cut into equal parts, whether
the slices are folded, and the value by which rows are where something is that they choose, if they are."""


@dataclass(frozen=True)
class Way:
    """How an op runs on one axis.

    `whole` on every rank; whole, and each rank has `terms` of the gradients; on partial `sums`; `cut` along a named
    dimension; or, as an op of `ir.spmd`, exchanging what it needs `inside`. `along` is the dimension of the last two.
    """

    kind: Literal["whole", "terms", "sums", "cut", "inside"]
    along: str = ""


def placement_problem(
    op: Op, operands: tuple[Placed, ...], results: tuple[Placed, ...], mesh: Mesh, *, mended: bool = True
) -> str:
    """Why an op may not run on operands and results so placed, and if `mended` what would mend it; empty if it may. See
    `ways`."""
    try:
        ways(op, operands, results, mesh)
    except Misplaced as problem:
        return str(problem) if mended else problem.why
    return ""


def ways(op: Op, operands: tuple[Placed, ...], results: tuple[Placed, ...], mesh: Mesh) -> tuple[Way, ...]:
    """How an op runs on each axis on operands and results so placed.

    Args:
        op: with its local results; its arguments fit its schema.
        operands: one per reference, in order.

    Raises:
        Misplaced: it does not.
    """
    dims = whole_dims(op, operands, results)
    return tuple(_way_on(op, dims, operands, results, mesh, i) for i in range(len(mesh)))


def whole_dims(op: Op, operands: tuple[Placed, ...], results: tuple[Placed, ...]) -> OpDims | None:
    """The named dimensions of an op seen whole; None where nothing is known of them.

    Raises:
        Misplaced: its operands are not what it takes.
    """
    made = replace(without_axis(without_site(op)), results=tuple(Value(r.name, r.type) for r in results))
    if op.function is not None and (problem := call_problem(made, [p.type for p in operands])):
        raise Misplaced(problem)
    try:
        dims = op_dims(made, {p.name: p.type for p in operands})
    except (GalvatronError, ValueError, LookupError, TypeError, AssertionError):
        raise Misplaced("its rule does not fit its operands") from None
    return dims if dims is None or dims.agree([p.type.shape for p in (*operands, *results)]) else None


def _way_on(
    op: Op,
    dims: OpDims | None,
    operands: tuple[Placed, ...],
    results: tuple[Placed, ...],
    mesh: Mesh,
    axis: int,
) -> Way:
    """How an op runs on one axis.

    Raises:
        Misplaced: it does not; with what would mend it.
    """
    exchanges = is_spmd(op.target) and op.kwarg("axis") == mesh[axis].name
    plain = op if exchanges else without_axis(without_site(op))

    def way(operands: tuple[Placed, ...], results: tuple[Placed, ...]) -> Way:
        return (_inside if exchanges else _without_communication)(plain, dims, operands, results, mesh, axis)

    try:
        return way(operands, results)
    except Misplaced as problem:
        reason = f", since {problem}" if str(problem) else ""
        told = f"on {mesh[axis].name} it does not run with {_told(operands, axis)} to {_told(results, axis)}{reason}"
        raise Misplaced(told, op_mended(way, operands, results, mesh, axis)) from None


def whole_problem(op: Op, operands: tuple[Placed, ...], results: tuple[Placed, ...]) -> str:
    """What is wrong with the results of an op of `ir.spmd`: seen whole they are those of the ATen op."""
    if not is_spmd(op.target):
        return ""
    made = replace(without_axis(op), results=tuple(Value(r.name, r.type) for r in results))
    types = {p.name: p.type for p in operands}
    try:
        shapes = expected_shapes(made, types)
    except ShapeError as error:
        return str(error)
    if shapes is not None and not all(map(same_shape, (r.type.shape for r in results), shapes)):
        return f"gives {' and '.join(map(str, shapes))} seen whole"
    return computed_problem(made, types)


def _told(values: Iterable[Placed], axis: int) -> str:
    return ", ".join(f"%{p.name}: {p.layout[axis]}" for p in values) or "nothing"


def _without_communication(
    op: Op,
    dims: OpDims | None,
    operands: tuple[Placed, ...],
    results: tuple[Placed, ...],
    mesh: Mesh,
    axis: int,
) -> Way:
    """How an op runs on an axis in one of the ways without communication.

    Raises:
        Misplaced: it does not.
    """
    if not any(isinstance(p.layout[axis], Shard) for p in (*operands, *results)):
        if (way := _unsharded(op, dims, operands, results, axis)) is None:
            raise Misplaced("" if takes_terms(op) else "its backward is not known to be linear in the gradient")
        return way
    if dims is None:
        raise Misplaced("nothing is known about its dimensions")
    cut = _common_factor(dims, operands, results, mesh, axis)
    if cut[3] and not acts_on_rows(op, dims, cut[0]):
        raise Misplaced("it does not treat rows one by one, and a rank has those that choose something of its own")
    if cut[0] in dims.indivisible or cut[0] in dims.spmd:
        exchanging = f", or be {spmd_target(op)}, which exchanges along it" if cut[0] in dims.spmd else ""
        raise Misplaced(f"it must see the sharded dimension whole{exchanging}")
    made = [_has(tensor, cut[0]) for tensor in dims.results]
    if any(made) and not all(made):
        raise Misplaced("not all results have the sharded dimension")
    _check_sharded(dims, cut[0], operands, results, axis, PARTIAL)
    return Way("cut", cut[0])


def _unsharded(
    op: Op, dims: OpDims | None, operands: tuple[Placed, ...], results: tuple[Placed, ...], axis: int
) -> Way | None:
    """How an op runs whole on every rank, or on partial sums; None where it does neither."""

    def are(values: tuple[Placed, ...], wanted: Replicate | Partial) -> bool:
        return all(p.takes(axis, wanted) for p in values)

    if are((*operands, *results), REPLICATE):
        return Way("whole")
    if takes_terms(op) and are((*operands, *results), BROADCAST):
        return Way("terms")
    if dims is None or not are(results, PARTIAL):
        return None
    if dims.sums and len(dims.sums) + len(dims.products) < len(operands):
        return None
    if dims.sums and not dims.products:
        return Way("sums") if are(operands, PARTIAL) else None
    passes = any(
        all(p.takes(axis, PARTIAL if i == factor or i in dims.sums else BROADCAST) for i, p in enumerate(operands))
        for factor in dims.products
    )
    return Way("sums") if passes else None


def _check_sharded(
    dims: OpDims,
    name: str,
    operands: tuple[Placed, ...],
    results: tuple[Placed, ...],
    axis: int,
    missing: Replicate | Partial,
) -> None:
    """Checks what has a sharded dimension and what has not; `missing` is the placement of a result without it."""
    made = [_has(tensor, name) for tensor in dims.results]
    for i, (tensor, placed) in enumerate(zip(dims.operands, operands, strict=True)):
        wanted = PARTIAL if not any(made) and i in dims.sums else BROADCAST
        if not _has(tensor, name) and not placed.takes(axis, wanted):
            raise Misplaced(f"%{placed.name} must be {wanted}")
    for tensor, placed in zip(dims.results, results, strict=True):
        if not _has(tensor, name) and not placed.takes(axis, missing):
            raise Misplaced(f"%{placed.name} must be {missing}")


def _has(tensor: tuple[tuple[str, ...], ...], name: str) -> bool:
    return any(name in names for names in tensor)


def _common_factor(
    dims: OpDims, operands: tuple[Placed, ...], results: tuple[Placed, ...], mesh: Mesh, axis: int
) -> Factor:
    """What an axis shards of every operand and result that has it.

    Raises:
        Misplaced: they are not sharded alike.
    """
    named = list(zip((*dims.operands, *dims.results), (*operands, *results), strict=True))
    factors = [
        (sharded_factor(dims, tensor, p, mesh, axis), p) for tensor, p in named if isinstance(p.layout[axis], Shard)
    ]
    (factor, first), *others = factors
    for other, placed in others:
        if other[:2] != factor[:2]:
            raise Misplaced(f"%{first.name} and %{placed.name} hold parts of different dimensions")
        if other[2] != factor[2]:
            raise Misplaced(f"only one of %{first.name} and %{placed.name} is folded")
        if other != factor:
            raise Misplaced(f"%{first.name} and %{placed.name} do not have the same rows")
    for tensor, placed in named:
        if _has(tensor, factor[0]) and not isinstance(placed.layout[axis], Shard):
            raise Misplaced(f"%{placed.name} must be sharded along the same dimension")
    return factor


def sharded_factor(dims: OpDims, tensor: tuple[tuple[str, ...], ...], placed: Placed, mesh: Mesh, axis: int) -> Factor:
    """The name and the stretch of it that an axis cuts.

    Raises:
        Misplaced: the axis cuts no such part.
    """
    shard = placed.layout[axis]
    assert isinstance(shard, Shard)
    end = _stretch(placed, mesh, axis)
    within: Dim = 1
    for name in reversed(tensor[shard.dim]):
        beyond = simplify_dim(within * dims.sizes[name])
        if end != within and divides(within, end) and divides(end, beyond):
            stretch = exact_quotient(end, within)
            assert stretch is not None
            pieces = shard.pieces(mesh[axis].size)
            fits = padded_part(stretch, pieces) if shard.padded else exact_quotient(stretch, pieces)
            if fits is None or (shard.padded and stretch != dims.sizes[name]):
                raise Misplaced(f"{stretch} elements of %{placed.name} do not divide into {pieces}")
            return name, stretch, shard.folded, shard.by
        within = beyond
    raise Misplaced(f"dimension {shard.dim} of %{placed.name} must be whole")


def _stretch(placed: Placed, mesh: Mesh, axis: int) -> Dim:
    """How many neighbouring elements of the whole dimension an axis cuts into parts: axes outside it that shard the
    same factor have cut it already."""
    shard = placed.layout[axis]
    assert isinstance(shard, Shard)
    ways: Dim = shard.outer
    for outer, placement in zip(mesh[:axis], placed.layout[:axis], strict=True):
        if same_factor(placement, shard):
            ways = ways * outer.size
    stretch = exact_quotient(placed.type.shape[shard.dim], ways)
    if stretch is None:
        raise Misplaced(f"dimension {shard.dim} of %{placed.name} does not divide into {ways} parts")
    return stretch


def _inside(
    op: Op,
    dims: OpDims | None,
    operands: tuple[Placed, ...],
    results: tuple[Placed, ...],
    mesh: Mesh,
    axis: int,
) -> Way:
    """How an op of `ir.spmd` runs on the axis on which it communicates.

    Raises:
        Misplaced: it is not placed as the op needs it.
    """
    if not any(isinstance(p.layout[axis], Shard) for p in operands):
        raise Misplaced("nothing is sharded")
    kind = on_slices(op)
    if (op.kwarg("folded") is not None) and kind.folded != "told":
        raise Misplaced("it is not told whether slices are folded")
    if op.kwarg("routed") is not None:
        if dims is None or not kind.routes or len(dims.spmd) != 1:
            raise Misplaced("it chooses nothing for rows")
        return Way("inside", _check_routed(op, dims, operands, results, axis))
    if kind.ring:
        _check_ring(op, operands, results, axis)
        return Way("inside", "the sequence")
    if dims is None or len(dims.spmd) != 1:
        raise Misplaced("it has no dimension that may be sharded")
    (sharded,) = dims.spmd
    name, stretch, folded, by = _common_factor(dims, operands, results, mesh, axis)
    if by or (name, stretch) != (sharded, dims.sizes[sharded]):
        raise Misplaced("another dimension than that of the table is sharded")
    if not _is_size(op, stretch):
        raise Misplaced(f"the whole size of the sharded dimension is {stretch}")
    if folded and kind.folded == "none":
        raise Misplaced("it takes no folded slices")
    _check_sharded(dims, sharded, operands, results, axis, kind.result)
    return Way("inside", sharded)


def _check_routed(op: Op, dims: OpDims, operands: tuple[Placed, ...], results: tuple[Placed, ...], axis: int) -> str:
    """Checks an op on rows that are where something is that they choose, and gives the dimension of that: its last
    operand, by which they are there, is where it was.

    Raises:
        Misplaced: it is not placed so.
    """
    (sharded,) = dims.spmd
    if not _is_size(op, dims.sizes[sharded]):
        raise Misplaced(f"the whole size of the sharded dimension is {dims.sizes[sharded]}")
    *given, by = operands
    rows: list[Placed] = []
    for placed, tensor in zip(given, dims.operands, strict=False):
        place = next((i for i, names in enumerate(tensor) if sharded in names), None)
        if place is None:
            rows.append(placed)
        elif placed.layout[axis] != Shard(place):
            raise Misplaced(f"%{placed.name} must be {Shard(place)}")
    for placed in (*rows, *results):
        wanted = Shard(0, by=by.name)
        if placed.layout[axis] != wanted:
            raise Misplaced(f"%{placed.name} must be {wanted}")
    if by.layout[axis] != Shard(0):
        raise Misplaced(f"%{by.name} must be {Shard(0)}")
    return sharded


def _is_size(op: Op, size: Dim) -> bool:
    """Whether an op of `ir.spmd` is told this whole size of what is sharded."""
    told = op.kwarg("size")
    return isinstance(told, (int, sympy.Expr)) and simplify_dim(told - size) == 0


def _check_ring(op: Op, operands: tuple[Placed, ...], results: tuple[Placed, ...], axis: int) -> None:
    """Ring attention: queries, keys, values and the rows of a mask are sharded along the whole sequence, all of them in
    folded slices or none."""
    folded = op.kwarg("folded") is True
    size = operands[0].type.shape[-2]
    if not _is_size(op, size):
        raise Misplaced(f"the whole size of the sharded dimension is {size}")
    for placed in (*operands, *results):
        rank = len(placed.type.shape)
        if rank < 2 or placed.type.shape[-2] == 1:
            if not placed.takes(axis, BROADCAST):
                raise Misplaced(f"%{placed.name} must be {BROADCAST}")
        elif placed.type.shape[-2] != size or placed.layout[axis] != Shard(rank - 2, folded=folded):
            raise Misplaced(f"%{placed.name} must be {Shard(rank - 2, folded=folded)}, along the sequence")
