"""Local graphs seen whole: what all ranks together compute, in the samples `B` of the whole batch.

Every op of a local graph computes on slices what it computes on whole tensors (`verify.placements` proves it), and a
collective changes where a value is, not what it is. So with whole types and without collectives a local graph is again
one that a single device could run, and whatever is known of such graphs can be asked of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import sympy

from galvatron.ir.graph import Arg, Graph, Op, Value
from galvatron.ir.layout import Layout, Mesh, Shard
from galvatron.ir.program import Layer, LayerClass
from galvatron.ir.random import without_site
from galvatron.ir.spmd import without_axis
from galvatron.ir.types import BATCH, LOCAL_BATCH, Dim, TensorType, has_samples, simplify_dim


def whole_type(value: Value, mesh: Mesh, padded: Mapping[int, int] | None = None) -> TensorType:
    """The type of the tensor that the ranks hold parts of; `padded` has the whole sizes of padded dimensions, which
    the parts do not tell: without them filler counts."""
    shape = list(value.type.shape)
    for placement, axis in zip(value.layout or (), mesh, strict=True) if mesh else ():
        if isinstance(placement, Shard):
            size = shape[placement.dim] * axis.size
            shape[placement.dim] = (padded or {}).get(placement.dim, size) if placement.padded else size
    return value.type.with_shape(tuple(shape))


@dataclass(frozen=True)
class SeenWhole:
    """A layer with the graph that it runs, seen whole, the whole types of its operands (None for what nothing before it
    makes), and the samples that `b` stands for in its class."""

    layer: Layer
    graph: Graph
    operands: tuple[TensorType | None, ...]
    samples: Dim


def layers_seen_whole(
    classes: Iterable[LayerClass], layers: Iterable[Layer], inputs: Iterable[Value]
) -> Iterator[SeenWhole]:
    """The layers of any form in their order."""
    class_of = {cls.name: cls for cls in classes}
    types = {value.name: value.type for value in inputs}
    graphs: dict[tuple[str, Dim], Graph] = {}
    for layer in layers:
        cls = class_of[layer.cls]
        operands = tuple(types.get(name) for name in layer.operands)
        samples = _samples(cls, operands)
        if (cls.name, samples) not in graphs:
            graphs[cls.name, samples] = _seen_whole(cls, samples)
        graph = graphs[cls.name, samples]
        made = (graph.values[formal].type for formal in graph.outputs)
        types.update(zip(layer.results, made, strict=True))
        yield SeenWhole(layer, graph, operands, samples)


def in_samples(layout: Layout, samples: Dim) -> Layout:
    """A layout of a class in which `b` stands for `samples`, told in those of the whole batch."""
    return tuple(
        replace(p, outer=_size(p.outer, samples)) if isinstance(p, Shard) and p.outer != 1 else p for p in layout
    )


def _samples(cls: LayerClass, operands: tuple[TensorType | None, ...]) -> Dim:
    """What `b` stands for in a layer that reads operands of these whole types.

    Without an operand that has samples it is the share of a data-parallel rank, or of one of those that share the
    samples of the first result that has some.
    """
    for operand, formal in zip(operands, cls.graph.inputs, strict=True):
        for size, counted in zip(operand.shape if operand else (), whole_type(formal, cls.mesh).shape, strict=False):
            if isinstance(size, sympy.Expr) and isinstance(counted, sympy.Expr) and (found := _solved(size, counted)):
                return found
    if cls.strategy is not None:
        return BATCH / sympy.Integer(cls.strategy.degree("dp"))
    ways = (_ways(cls.graph.values[name], cls.mesh) for name in cls.graph.outputs)
    return BATCH / sympy.Integer(next((n for n in ways if n is not None), 1))


@lru_cache(maxsize=1 << 12)
def _solved(size: sympy.Expr, counted: sympy.Expr) -> Dim | None:
    """The share of `B` that makes a size counted in `b` equal to one counted in `B`."""
    part = sympy.cancel(size * LOCAL_BATCH / (counted * BATCH))
    return simplify_dim(part * BATCH) if part.is_Rational and part.is_positive else None


def _ways(value: Value, mesh: Mesh) -> int | None:
    """Into how many parts the first dimension of a value that has samples is cut; None for a value without."""
    for dim, size in enumerate(value.type.shape):
        if has_samples(size):
            placed = zip(value.layout or (), mesh, strict=False)
            return math.prod(axis.size for p, axis in placed if isinstance(p, Shard) and p.dim == dim)
    return None


def _seen_whole(cls: LayerClass, samples: Dim) -> Graph:
    """The graph of a class seen whole, with `samples` for `b`."""
    sizes = (dim for value in cls.graph.values.values() for dim in value.type.shape)
    if not cls.mesh and not any(isinstance(dim, sympy.Expr) and dim.has(LOCAL_BATCH) for dim in sizes):
        return cls.graph

    def whole(value: Value) -> Value:
        type_ = whole_type(value, cls.mesh)
        return Value(value.name, type_.with_shape(tuple(_size(dim, samples) for dim in type_.shape)))

    def plain(op: Op) -> Op:
        found = without_axis(without_site(op))
        return replace(
            found,
            args=tuple(map(_counted, found.args)),
            kwargs=tuple((name, _counted(arg)) for name, arg in found.kwargs),
            results=tuple(map(whole, op.results)),
        )

    names: dict[str, str] = {}
    ops: list[Op] = []
    for op in cls.graph.ops:
        read = op.map_refs(lambda name: names.get(name, name))
        if op.namespace == "comm":
            names[op.result.name] = read.operands[0]
        else:
            ops.append(plain(read))
    return Graph(
        tuple(map(whole, cls.graph.inputs)),
        tuple(map(whole, cls.graph.state)),
        tuple(ops),
        tuple(names.get(name, name) for name in cls.graph.outputs),
    )


def _counted(arg: Arg) -> Arg:
    """An argument seen whole: the samples of a rank are those of all. (Sizes among arguments are `B` whatever the
    results have; who reads them knows from the operator which are sizes of its results.)"""
    if isinstance(arg, tuple):
        return tuple(map(_counted, arg))
    return _size(arg, BATCH) if isinstance(arg, sympy.Expr) else arg


def _size(size: Dim, samples: Dim) -> Dim:
    """A size or number with `samples` for `b`."""
    if not isinstance(size, sympy.Expr) or not size.has(LOCAL_BATCH):
        return size
    return simplify_dim(size.subs(LOCAL_BATCH, samples))
