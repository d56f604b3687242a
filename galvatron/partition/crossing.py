"""Redistribution between layers: the little graph that takes a value from one layer's layout to the next one's."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import sympy

from galvatron.ir.graph import Graph, Op, Value
from galvatron.ir.layout import Axis, Layout, Mesh, Placement, Shard, global_shape, gradientless, joint_mesh, on_mesh
from galvatron.ir.names import Names
from galvatron.ir.program import LayerClass
from galvatron.ir.types import LOCAL_BATCH, Dim, TensorType, exact_quotient, simplify_dim
from galvatron.partition.conversion import redistribute

OnMesh = tuple[Value, Mesh]
"""A local value with its layout, and the mesh of the layout."""


@dataclass(frozen=True)
class Crossing:
    """A value on its way between two layouts, on the mesh that refines both sides.

    A rank's share of the samples differs between the two sides. Here `b` is a share so small that every tensor on the
    way holds a whole number of them; `shares` of them make one share of the producer.
    """

    value: Value
    after: Layout
    whole: TensorType
    mesh: Mesh
    shares: int
    differentiable: bool

    @staticmethod
    def between(source: OnMesh, target: OnMesh, *, differentiable: bool) -> Crossing | None:
        """What there is to do to a value between two layouts; None when they are the same.

        Args:
            source: the value as its producer gives it, with the producer's mesh.
            target: the value as its consumer reads it, with the consumer's mesh.

        Raises:
            GalvatronError: the two meshes overlap without nesting.
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
        return Crossing(local, after, whole_type, mesh, finer, differentiable)

    @cached_property
    def ops(self) -> tuple[Op, ...]:
        """The ops that take it there, one after the other.

        Raises:
            GalvatronError: a dimension is not divisible.
        """
        value, gradient, fresh = self.value, self.differentiable, Names([self.value.name]).fresh
        return redistribute(value, self.after, self.mesh, self.whole, differentiable=gradient, fresh_name=fresh)

    def cls(self, name: str) -> LayerClass:
        """They as a class with one input and one output; raises as `ops`."""
        return LayerClass(name, Graph((self.value,), (), self.ops, (self.ops[-1].result.name,)), mesh=self.mesh)


def joined_axes(layout: Layout, mesh: Mesh) -> tuple[Layout, Mesh]:
    """A layout on the fewest axes that tell it, without names: neighbours on which a value is placed alike are one, and
    so are converted as one."""
    axes: list[Axis] = []
    placements: list[Placement] = []
    for placement, axis in zip(layout, mesh, strict=True):
        if axes and placements[-1] == placement and axes[-1].stride == axis.size * axis.stride:
            axes[-1] = Axis("", axes[-1].size * axis.size, axis.stride)
        else:
            axes.append(Axis("", axis.size, axis.stride))
            placements.append(placement)
    return tuple(placements), tuple(axes)


def _joined(placed: OnMesh) -> OnMesh:
    value, mesh = placed
    layout, coarse = joined_axes(value.layout or (), mesh)
    return replace(value, layout=layout), coarse


def _share_ratio(whole: tuple[Dim, ...], wanted: tuple[Dim, ...]) -> sympy.Expr | int:
    """The consumer's `b` in terms of the producer's, given the shape of the whole value in terms of each."""
    for a, b in zip(whole, wanted, strict=True):
        if not isinstance(a, int) and not isinstance(b, int):
            return _ratio(a, b)
    return 1


@lru_cache(maxsize=1 << 12)
def _ratio(a: sympy.Expr, b: sympy.Expr) -> sympy.Expr:
    return sympy.cancel(a / b)


def _finer(shape: tuple[Dim, ...], before: Layout, after: Layout, mesh: Mesh) -> int:
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
    return shape if factor == 1 else tuple(d if isinstance(d, int) else _scaled(d, factor) for d in shape)


@lru_cache(maxsize=1 << 12)
def _scaled(dim: sympy.Expr, factor: sympy.Expr | int) -> Dim:
    return simplify_dim(dim.subs(LOCAL_BATCH, factor * LOCAL_BATCH))


def _rescaled(layout: Layout, factor: sympy.Expr | int) -> Layout:
    if factor == 1:
        return layout
    return tuple(replace(p, outer=_in_shares((p.outer,), factor)[0]) if isinstance(p, Shard) else p for p in layout)
