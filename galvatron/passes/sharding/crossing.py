"""Redistribution between layers: the little graph that takes a value from one layer's layout to the next one's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction

import sympy

from galvatron.ir.graph import Graph, Value
from galvatron.ir.layout import (
    BROADCAST,
    REPLICATE,
    Axis,
    Layout,
    Shard,
    global_shape,
    gradientless,
    joined_layout,
    joint_mesh,
    on_mesh,
)
from galvatron.ir.program import LayerClass
from galvatron.ir.types import LOCAL_BATCH, Dim, exact_quotient, simplify_dim
from galvatron.passes.sharding.conversion import redistribute

Placed = tuple[Value, tuple[Axis, ...]]
"""A local value with its layout, and the mesh of the layout."""


@dataclass(frozen=True)
class Redistribution:
    """One step between two layouts: its class, and how many of its shares (what `b` counts in it) make one share of the
    producer."""

    cls: LayerClass
    shares: Fraction


def redistribution_classes(
    name: str, source: Placed, target: Placed, *, differentiable: bool
) -> tuple[Redistribution, ...]:
    """Classes with one input and one output that one after the other change a value's layout; none when the layouts are
    the same.

    One class suffices, on the mesh that refines both sides, except where an axis folds its shards: what is folded on
    one side only is made whole in a class of its own.

    Args:
        source: the value as its producer gives it, with the producer's mesh.
        target: the value as its consumer reads it, with the consumer's mesh.

    Raises:
        GalvatronError: the two meshes overlap without nesting, or a dimension is not divisible.
    """
    source, target = _joined(source), _joined(target)
    if source[1] == target[1] and source[0].layout == target[0].layout:
        return ()
    stops = [source, _unfolded(source, differentiable), _unfolded(target, differentiable), target]
    meshes = [source[1], joint_mesh(source[1], target[1]), target[1]]
    steps: list[Redistribution] = []
    for before, after, mesh in zip(stops, stops[1:], meshes, strict=False):
        step_name = f"{name}.{len(steps)}" if steps else name
        made = _redistribution(step_name, before, after, mesh, differentiable)
        if made is not None:
            cls, finer = made
            steps.append(Redistribution(cls, finer / _shares_of(source, before)))
    return tuple(steps)


def _joined(placed: Placed) -> Placed:
    """The same value on the coarsest mesh, so that sub-axes on which it is placed alike are converted as one."""
    value, mesh = placed
    layout, coarse = joined_layout(value.layout or (), mesh)
    return replace(value, layout=layout), coarse


def _shares_of(source: Placed, other: Placed) -> Fraction:
    """How many shares of samples of the producer make one share at another stop."""
    shapes = (global_shape(value.type.shape, value.layout or (), mesh) for value, mesh in (source, other))
    numerator, denominator = sympy.fraction(sympy.sympify(_share_ratio(*shapes)))
    return Fraction(int(numerator), int(denominator))


def _unfolded(placed: Placed, differentiable: bool) -> Placed:
    """The same value whole on the axes that fold."""
    value, mesh = placed
    assert value.layout is not None
    whole = BROADCAST if differentiable else REPLICATE
    folded = [isinstance(p, Shard) and axis.folded for p, axis in zip(value.layout, mesh, strict=True)]
    layout = tuple(whole if f else p for f, p in zip(folded, value.layout, strict=True))
    kept = tuple(p if f else REPLICATE for f, p in zip(folded, value.layout, strict=True))
    shape = global_shape(value.type.shape, kept, mesh)
    return replace(value, type=value.type.with_shape(shape), layout=layout), mesh


def _redistribution(
    name: str, source: Placed, target: Placed, mesh: tuple[Axis, ...], differentiable: bool
) -> tuple[LayerClass, Fraction] | None:
    """One class on a mesh that refines both sides, and its shares in one of the source; None if nothing is to be done.

    A rank's share of the samples differs between the two sides. In the class `b` is a share so small that every tensor
    on the way holds a whole number of them.
    """
    (value, source_mesh), (wanted, target_mesh) = source, target
    assert value.layout is not None and wanted.layout is not None
    before, after = on_mesh(value.layout, source_mesh, mesh), on_mesh(wanted.layout, target_mesh, mesh)
    if not differentiable:
        before, after = gradientless(before), gradientless(after)
    whole = global_shape(value.type.shape, value.layout, source_mesh)
    share = _share_ratio(whole, global_shape(wanted.type.shape, wanted.layout, target_mesh))
    after = _rescaled(after, share)
    if before == after:
        return None
    finer = _finer(value.type.shape, before, after, mesh)
    before, after = _rescaled(before, finer), _rescaled(after, finer)
    local = Value("x", value.type.with_shape(_in_shares(value.type.shape, finer)), before)
    whole_type = value.type.with_shape(_in_shares(whole, finer))
    ops = redistribute(
        local, after, mesh, whole_type, differentiable=differentiable, fresh_name=_fresh_names({local.name})
    )
    return LayerClass(name, Graph((local,), (), ops, (ops[-1].result.name,)), mesh=mesh), Fraction(finer)


def _share_ratio(whole: tuple[Dim, ...], wanted: tuple[Dim, ...]) -> sympy.Expr | int:
    """The consumer's `b` in terms of the producer's, given the shape of the whole value in terms of each."""
    for a, b in zip(whole, wanted, strict=True):
        if not isinstance(a, int) and not isinstance(b, int):
            return sympy.cancel(a / b)
    return 1


def _finer(shape: tuple[Dim, ...], before: Layout, after: Layout, mesh: tuple[Axis, ...]) -> int:
    """How many shares each share of the producer must be cut into so that every new slice is a whole number of them."""
    finer, local = 1, list(shape)
    for old, new, axis in zip(before, after, mesh, strict=True):
        if isinstance(new, Shard) and new != old:
            quotient = exact_quotient(local[new.dim], axis.size)
            if quotient is None:
                finer *= axis.size
            else:
                local[new.dim] = quotient
    return finer


def _in_shares(shape: tuple[Dim, ...], factor: sympy.Expr | int) -> tuple[Dim, ...]:
    """The shape with `b` replaced by `factor * b`."""
    return tuple(d if isinstance(d, int) else simplify_dim(d.subs(LOCAL_BATCH, factor * LOCAL_BATCH)) for d in shape)


def _rescaled(layout: Layout, factor: sympy.Expr | int) -> Layout:
    return tuple(replace(p, outer=_in_shares((p.outer,), factor)[0]) if isinstance(p, Shard) else p for p in layout)


def _fresh_names(taken: set[str]) -> Callable[[str], str]:
    def fresh(hint: str) -> str:
        name = hint if hint not in taken else f"{hint}_{len(taken)}"
        taken.add(name)
        return name

    return fresh
