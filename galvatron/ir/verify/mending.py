"""What would mend an op, a collective or a border between layers where values are not placed as they are read: the one
placement that has to be another one on an axis, and the collective that makes it so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

from galvatron.ir.collectives import conversion, ends, keywords_of
from galvatron.ir.graph import Op
from galvatron.ir.layout import (
    BROADCAST,
    PARTIAL,
    REPLICATE,
    Axis,
    Layout,
    Mesh,
    Placement,
    Shard,
    gradientless,
    local_placement,
)
from galvatron.ir.text.arguments import format_argument
from galvatron.ir.verify.placed import Misplaced, Placed

Runs = Callable[[tuple[Placed, ...], tuple[Placed, ...]], object]
"""Raises `Misplaced` for operands and results on which an op does not run."""

_TRIED = 8
"""Operands, and dimensions of each, that are tried: a file may have an op of thousands."""


def op_mended(runs: Runs, operands: tuple[Placed, ...], results: tuple[Placed, ...], mesh: Mesh, axis: int) -> str:
    """How a message goes on that says why an op does not run; empty where no change of a single value would do.

    Args:
        axis: the position of the axis on which it does not.
    """
    told = [
        *islice(_operands_mended(runs, operands, results, mesh, axis), 1),
        *islice(_results_mended(runs, operands, results, mesh, axis), 1),
    ]
    return f"; to mend it, {', or '.join(told)}" if told else ""


def _operands_mended(
    runs: Runs, operands: tuple[Placed, ...], results: tuple[Placed, ...], mesh: Mesh, axis: int
) -> Iterator[str]:
    for value in tuple(dict.fromkeys(operands))[:_TRIED]:
        for placement in _placements(value, axis, (*operands, *results)):
            moved = value.moved(axis, placement)
            if not _does(runs, tuple(moved if one == value else one for one in operands), results):
                continue
            if value.is_state and placement != PARTIAL:  # which state never is
                yield f"let %{value.name} be {placement} on {mesh[axis].name}{_summed(placement, mesh[axis])}"
            elif call := _call(f"%{value.name}", value.layout, moved.layout, mesh, axis):
                yield f"read %{value.name} as {placement}, which {call} gives"


def _results_mended(
    runs: Runs, operands: tuple[Placed, ...], results: tuple[Placed, ...], mesh: Mesh, axis: int
) -> Iterator[str]:
    if len(results) != 1:
        return
    (result,) = results
    for placement in _placements(result, axis, operands):
        moved = result.moved(axis, placement)
        if _does(runs, operands, (moved,)):
            call = _call(f"%{result.name}", moved.layout, result.layout, mesh, axis)
            then = f", of which {call} makes {result.layout[axis]}" if call else ""
            yield f"say that %{result.name} is {placement}{then}"


def _does(runs: Runs, operands: tuple[Placed, ...], results: tuple[Placed, ...]) -> bool:
    try:
        runs(operands, results)
    except Misplaced:
        return False
    return True


def _placements(value: Placed, axis: int, others: tuple[Placed, ...]) -> Iterator[Placement]:
    """What a value might be on an axis instead: whole, a sum, the slices that are there, those of each dimension."""
    cuts = [Shard(dim) for dim in range(min(_TRIED, len(value.type.shape)))]
    there = (other.layout[axis] for other in others[:_TRIED])
    shards = [p for p in there if isinstance(p, Shard) and p.dim < len(cuts) and not p.padded]
    for placement in dict.fromkeys((REPLICATE, BROADCAST, PARTIAL, *shards, *cuts)):
        if placement != value.layout[axis] and (value.differentiable or placement != BROADCAST):
            yield placement


def _summed(placement: Placement, axis: Axis) -> str:
    return f": its gradient is then summed over {axis.name}" if placement == BROADCAST else ""


def _call(operand: str, source: Layout, target: Layout, mesh: Mesh, axis: int) -> str:
    """The collective that takes a value from one layout to another, which differ on one axis, as text; empty where no
    single one does."""
    way = conversion(source[axis], target[axis])
    if way is None:
        return ""
    before, after = (local_placement(layout, mesh, axis) for layout in (source, target))
    keywords = keywords_of(way, before, after, mesh[axis].name)
    told = ", ".join(f"{name}={format_argument(arg, lenient=True)}" for name, arg in keywords)
    return f"{way.collective.target}({operand}, {told})"


def collective_mended(op: Op, value: str, before: Layout, after: Layout, mesh: Mesh, axis: int) -> str:
    """How a message goes on that says that a collective does not lead from what its operand is to what its result is
    on its axis."""
    meant = [
        other.name
        for i, other in enumerate(mesh)
        if (local_placement(before, mesh, i), local_placement(after, mesh, i)) == ends(op) and i != axis
    ]
    if meant:
        return f"; to mend it, name the axis {meant[0]}"
    if before[axis] == after[axis]:
        return f"; to mend it, leave it out: %{value} is {after[axis]} already"
    call = _call(f"%{value}", before, after, mesh, axis)
    return f"; to mend it, {call}" if call else ""


def border_mended(value: str, mesh: Mesh, given: Layout, asked: Layout, *, differentiable: bool) -> str:
    """How a message goes on that says that a layer reads a value otherwise than another one gives it, on one mesh;
    empty where no chain of collectives, one for each axis, makes it so."""
    if not differentiable:
        given, asked = gradientless(given), gradientless(asked)
    calls: list[str] = []
    for axis in (i for i in range(len(mesh)) if given[i] != asked[i]):
        moved = (*given[:axis], asked[axis], *given[axis + 1 :])
        call = _call("it" if calls else f"%{value}", given, moved, mesh, axis)
        if not call:
            return ""
        calls.append(call)
        given = moved
    return f"; to mend it, {', and of that '.join(calls)} at the end of the layer that makes it, or in a conversion"
