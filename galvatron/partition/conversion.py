"""Redistribution: the collectives that take a value from one layout to another, forward and adjoint.

The table of collectives (`ir.collectives`) covers a single mesh axis. On several axes the steps are ordered so that
data shrinks early and grows late: slice, reduce, exchange, gather, and last the conversions that only concern the
gradient. Axes that shard one factor nest like a stack: the inner one must be undone before the outer one can change. No
step makes slices that are none (`cutting_problem`). Sub-axes that change alike change as the axis that they are cut
from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

from galvatron.errors import GalvatronError
from galvatron.ir.collectives import MESSAGES, Conversion, Keywords, conversion, keywords_of
from galvatron.ir.graph import Op, Ref, Value
from galvatron.ir.layout import (
    BROADCAST,
    PARTIAL,
    REPLICATE,
    Layout,
    Mesh,
    Partial,
    Placement,
    Replicate,
    Shard,
    cutting_problem,
    is_routed,
    joined,
    local_placement,
    local_shape,
    same_factor,
)
from galvatron.ir.types import Dim, TensorType

Choosing = Callable[[str, Layout], tuple[Value, int]]
"""Gives, for the name of a value of a class that rows are sent by, the local value that has a number for each row in a
layout of rows, and among how many it chooses."""


def chooses_for(rows: Layout) -> Layout:
    """The layout of whole numbers, one for each row, by which rows in a layout have been sent, or are: they are where
    the rows were, and cut as these are on every other axis."""
    return tuple(replace(p, by="") if isinstance(p, Shard) and p.dim == 0 else REPLICATE for p in rows)


def rounds(source: Layout, target: Layout, *, differentiable: bool) -> float:
    """A rank among ways to make a layout: how often the value and its gradient go round the axes on the way."""
    total = 0.0
    for before, after in zip(source, target, strict=True):
        row = conversion(before, after)
        if row is not None:
            total += _rounds(row.forward) + (_rounds(row.backward) if differentiable else 0.0)
        elif before != after:
            total += 10.0
    return total


def _rounds(message: str | None) -> float:
    return MESSAGES[message].rounds if message else 0.01


def redistribute(
    value: Value,
    target: Layout,
    mesh: Mesh,
    whole: TensorType,
    *,
    differentiable: bool = True,
    fresh_name: Callable[[str], str],
    choosing: Choosing | None = None,
) -> tuple[Op, ...]:
    """The ops that bring `value` into the layout `target`; empty when it is there already.

    Args:
        value: the local value, with its layout on `mesh`.
        whole: its global type.
        differentiable: False for values without a gradient, for which `R` and `R'` are one.
        fresh_name: gives a new unique value name for a hint.
        choosing: gives what rows are sent by.

    Raises:
        GalvatronError: the value cannot be cut into such slices.
    """
    assert value.layout is not None
    if problem := cutting_problem(whole.shape, target, mesh):
        raise GalvatronError(f"%{value.name} is to be {problem}")
    current = value.layout
    if not differentiable:
        target = tuple(c if {c, t} == {REPLICATE, BROADCAST} else t for c, t in zip(current, target, strict=True))
    # Sub-axes that are converted alike are so by one collective on all of them.
    coarse, groups = joined(mesh, current, target)
    current, target = (tuple(layout[group[0]] for group in groups) for layout in (current, target))
    ops: list[Op] = []
    passed = {current}
    while current != target:
        step = _step(current, target, coarse, whole)
        assert step.after not in passed, "a way that comes back would never end"
        passed.add(step.after)
        result = Value(fresh_name(f"{value.name}.{step.row.collective.name}"), step.type, _spread(step.after, groups))
        chosen = _chosen(step.placements, result.layout or (), choosing)
        kwargs = keywords_of(step.row, *step.ends, step.axis, chosen)
        ops.append(Op(step.row.collective.target, (Ref(value.name),), kwargs, (result,)))
        value, current = result, step.after
    return tuple(ops)


def _waypoints(current: Layout, target: Layout) -> Layout:
    """Where each axis goes first: rows go by what they choose from slices, and back. They do that too for what another
    axis does along their dimension."""
    moved = {
        placement.dim
        for before, after in zip(current, target, strict=True)
        if before != after and not is_routed(before) and not is_routed(after)
        for placement in (before, after)
        if isinstance(placement, Shard)
    }
    return tuple(_waypoint(before, after, moved) for before, after in zip(current, target, strict=True))


def _waypoint(current: Placement, target: Placement, moved: set[int]) -> Placement:
    for placement in (current, target):
        if isinstance(placement, Shard) and placement.by:
            slices = replace(placement, by="")
            if placement.dim in moved or (current != target and slices not in (current, target)):
                return slices
    return target


def _spread(layout: Layout, groups: list[tuple[int, ...]]) -> Layout:
    """The layout on the mesh whose positions make up each axis of the coarser mesh that it is on."""
    found = {i: placement for placement, group in zip(layout, groups, strict=True) for i in group}
    return tuple(found[i] for i in range(len(found)))


def _chosen(ends: tuple[Placement, Placement], after: Layout, choosing: Choosing | None) -> Keywords:
    """What a collective is told that sends rows by what they choose."""
    by = next((p.by for p in ends if isinstance(p, Shard) and p.by), "")
    if not by:
        return {}
    assert choosing is not None
    value, size = choosing(by, after)
    return {"by": Ref(value.name), "size": size}


_ORDER: tuple[Callable[[Placement, Placement], bool], ...] = (
    lambda a, b: is_routed(a),
    lambda a, b: isinstance(a, Replicate) and isinstance(b, Shard),
    lambda a, b: isinstance(a, Partial),
    lambda a, b: isinstance(a, Shard) and isinstance(b, Shard) and not is_routed(b),
    lambda a, b: isinstance(a, Shard) and not is_routed(b),
    lambda a, b: True,
)
"""Which conversions come first. Rows that are where they are by choice are put back before all, and sent last: what
else an axis does to their dimension is between ranks that have the same rows."""


def _next_step(current: Layout, target: Layout, mesh: Mesh, shape: tuple[Dim, ...]) -> tuple[int, Placement]:
    """The axis to convert next and its placement afterwards."""
    open_axes = [i for i, (c, t) in enumerate(zip(current, target, strict=True)) if c != t]
    for applies in _ORDER:
        # Shards are made outermost first and undone innermost first.
        undo = applies is _ORDER[3] or applies is _ORDER[4]
        for i in reversed(open_axes) if undo else open_axes:
            if not applies(current[i], target[i]) or not _stack_allows(current, target, i):
                continue
            if (current[i], target[i]) == (BROADCAST, PARTIAL):
                return i, REPLICATE
            if not cutting_problem(shape, (*current[:i], target[i], *current[i + 1 :]), mesh):
                return i, target[i]
    # Every open axis waits for another one: undo the innermost that shares a factor with an open one, or is open.
    for i in reversed(range(len(current))):
        shares = (o for o in open_axes if o < i and any(same_factor(current[i], p) for p in (current[o], target[o])))
        if isinstance(current[i], Shard) and next(shares, None) is not None:
            return i, REPLICATE
    return next(i for i in reversed(open_axes) if isinstance(current[i], Shard)), REPLICATE


def _stack_allows(current: Layout, target: Layout, i: int) -> bool:
    """Whether axis `i` may change now: no inner axis shards a factor that `i` shards or is to shard, and no outer one
    that it is to nest in will still change."""
    if is_routed(current[i]) or is_routed(target[i]):
        return True
    for j, other in enumerate(current):
        if j > i and (same_factor(other, current[i]) or same_factor(other, target[i])):
            return False
        if j < i and same_factor(other, target[i]) and target[j] != other:
            return False
        if j < i and same_factor(target[j], target[i]) and other != target[j]:
            return False
    return True


@dataclass(frozen=True)
class _Step:
    """One collective on the way from a layout to another.

    Attributes:
        axis: its name. placements: before and after, on that axis. ends: the same as keywords tell them.
        after, type: the layout then, and the local type.
    """

    row: Conversion
    axis: str
    placements: tuple[Placement, Placement]
    ends: tuple[Placement, Placement]
    after: Layout
    type: TensorType


@lru_cache(maxsize=1 << 14)
def _step(current: Layout, target: Layout, mesh: Mesh, whole: TensorType) -> _Step:
    """The first one; the ways of many values end in the same steps."""
    position, placement = _next_step(current, _waypoints(current, target), mesh, whole.shape)
    row = conversion(current[position], placement)
    assert row is not None, (current[position], placement)
    after = (*current[:position], placement, *current[position + 1 :])
    before, behind = (local_placement(layout, mesh, position) for layout in (current, after))
    type_ = whole.with_shape(local_shape(whole.shape, after, mesh))
    return _Step(row, mesh[position].name, (current[position], placement), (before, behind), after, type_)
