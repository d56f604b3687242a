"""Redistribution between layers: the little graph that takes a value from one layer's layout to the next one's."""

from __future__ import annotations

from dataclasses import dataclass, replace

import sympy

from galvatron.ir.graph import Graph, Value
from galvatron.ir.layout import (
    Axis,
    Layout,
    Shard,
    global_shape,
    gradientless,
    joined_layout,
    joint_mesh,
    on_mesh,
)
from galvatron.ir.names import Names
from galvatron.ir.program import LayerClass
from galvatron.ir.types import LOCAL_BATCH, Dim, exact_quotient, simplify_dim
from galvatron.partition.conversion import redistribute

OnMesh = tuple[Value, tuple[Axis, ...]]
"""A local value with its layout, and the mesh of the layout."""


@dataclass(frozen=True)
class Redistribution:
    """The step between two layouts: its class, and how many of its shares (what `b` counts in it) make one share of the
    producer."""

    cls: LayerClass
    shares: int


def redistribution(name: str, source: OnMesh, target: OnMesh, *, differentiable: bool) -> Redistribution | None:
    """A class with one input and one output that changes a value's layout, on the mesh that refines both sides; None
    when the layouts are the same.

    A rank's share of the samples differs between the two sides. In the class `b` is a share so small that every tensor
    on the way holds a whole number of them.

    Args:
        source: the value as its producer gives it, with the producer's mesh.
        target: the value as its consumer reads it, with the consumer's mesh.

    Raises:
        GalvatronError: the two meshes overlap without nesting, or a dimension is not divisible.
    """
    (value, source_mesh), (wanted, target_mesh) = _joined(source), _joined(target)
    if source_mesh == target_mesh and value.layout == wanted.layout:
        return None
    assert value.layout is not None and wanted.layout is not None
    mesh = joint_mesh(source_mesh, target_mesh)
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
    fresh = Names([local.name]).fresh
    ops = redistribute(local, after, mesh, whole_type, differentiable=differentiable, fresh_name=fresh)
    return Redistribution(LayerClass(name, Graph((local,), (), ops, (ops[-1].result.name,)), mesh=mesh), finer)


def _joined(placed: OnMesh) -> OnMesh:
    """The same value on the coarsest mesh, so that sub-axes on which it is placed alike are converted as one."""
    value, mesh = placed
    layout, coarse = joined_layout(value.layout or (), mesh)
    return replace(value, layout=layout), coarse


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
                finer *= new.pieces(axis.size)
            else:
                local[new.dim] = quotient
    return finer


def _in_shares(shape: tuple[Dim, ...], factor: sympy.Expr | int) -> tuple[Dim, ...]:
    """The shape with `b` replaced by `factor * b`."""
    if factor == 1:
        return shape
    return tuple(d if isinstance(d, int) else simplify_dim(d.subs(LOCAL_BATCH, factor * LOCAL_BATCH)) for d in shape)


def _rescaled(layout: Layout, factor: sympy.Expr | int) -> Layout:
    if factor == 1:
        return layout
    return tuple(replace(p, outer=_in_shares((p.outer,), factor)[0]) if isinstance(p, Shard) else p for p in layout)
