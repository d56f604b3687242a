"""Masks and positions that are the same for every sample are computed for one.

A model expands its masks to the batch early: `[B, 1, n, n]`. Where an op broadcasts anyhow, it reads the value of one
sample instead, `[1, 1, n, n]`, computed by the same ops at B = 1. That every sample has this value follows from the
sharding rules: what no batch input goes into, and whose dim of samples every op on the way keeps apart from the other
dims, varies with the sample only if an op counts samples; such ops have B among their arguments.
"""

from __future__ import annotations

from dataclasses import replace

import sympy

from galvatron.ir.graph import Arg, Graph, Op, Ref, Value
from galvatron.ir.names import Names, base_name
from galvatron.ir.ops.shapes import broadcast, same_shape
from galvatron.ir.ops.table import is_pointwise, op_dims, operator_of
from galvatron.ir.random import is_random
from galvatron.ir.types import BATCH, TensorType
from galvatron.passes.normalize.arguments import with_arguments


def computed_for_one_sample(graph: Graph) -> Graph:
    """The graph whose attention and pointwise ops read masks of one sample where all samples have the same."""
    alike = _alike(graph)
    single = _Single(graph)
    for op in graph.ops:
        if op.results[0].name not in alike:
            for name in _broadcast_operands(op, graph, alike):
                op = op.map_refs(lambda n, name=name: single.of(name) if n == name else n)
        single.ops.append(op)
    return replace(graph, ops=tuple(single.ops)).without_dead_ops()


def _alike(graph: Graph) -> set[str]:
    """The values that are the same for every sample."""
    types = {name: value.type for name, value in graph.values.items()}
    alike = {value.name for value in graph.state}
    for op in graph.ops:
        if alike.issuperset(op.operands) and not is_random(op) and _keeps_samples_apart(op, types):
            alike.update(value.name for value in op.results)
    return alike


def _keeps_samples_apart(op: Op, types: dict[str, TensorType]) -> bool:
    """Whether each sample's part of the results is computed from its part of the operands, and alike for all."""
    if not all(_counts_no_samples(a) for a in _other_arguments(op)):
        return False
    operands = [_sample_dim(types[name]) for name in op.operands]
    results = [_sample_dim(value.type) for value in op.results]
    if None in operands or None in results:
        return False
    if all(at == _NOWHERE for at in (*operands, *results)):
        return True
    if _NOWHERE in results:
        return False
    if all(at == _NOWHERE for at in operands):
        return bool(operator_of(op).size)
    dims = op_dims(op, types)
    if dims is None:
        return False
    pairs = [*zip(dims.operands, operands, strict=True), *zip(dims.results, results, strict=True)]
    names = {named[at] for named, at in pairs if at is not None and at != _NOWHERE}
    whole = dims.indivisible | dims.spmd
    return len(names) == 1 and all(len(name) == 1 and whole.isdisjoint(name) for name in names)


_NOWHERE = -1


def _sample_dim(type_: TensorType) -> int | None:
    """Where the dim of samples is; `_NOWHERE` if there is none, None if B is in more than one dim or in a product."""
    symbolic = [i for i, size in enumerate(type_.shape) if isinstance(size, sympy.Expr)]
    if not symbolic:
        return _NOWHERE
    return symbolic[0] if len(symbolic) == 1 and type_.shape[symbolic[0]] == BATCH else None


def _other_arguments(op: Op) -> list[Arg]:
    """The arguments less the size of the result, of which the type speaks."""
    return [value for name, value in op.arguments.items() if name != operator_of(op).size]


def _counts_no_samples(arg: Arg) -> bool:
    return all(map(_counts_no_samples, arg)) if isinstance(arg, tuple) else not isinstance(arg, sympy.Expr)


def _broadcast_operands(op: Op, graph: Graph, alike: set[str]) -> list[str]:
    """Operands of an op that are the same for every sample, and whose dim of samples it does not need."""
    expanded = [n for n in dict.fromkeys(op.operands) if n in alike and _sample_dim(graph.values[n].type) != _NOWHERE]
    if mask := operator_of(op).mask:
        return [name for name in expanded if op[mask] == Ref(name) and op.operands.count(name) == 1]
    if not expanded or not is_pointwise(op):
        return []
    shapes = {name: graph.values[name].type.shape for name in op.operands}
    chosen: list[str] = []
    for name in expanded:
        narrow = shapes | {name: _for_one(graph.values[name].type).shape}
        if same_shape(broadcast(list(narrow.values())), op.result.type.shape):
            shapes = narrow
            chosen.append(name)
    return chosen


class _Single:
    """The new graph's ops, and the values of one sample among them, made when they are first read."""

    def __init__(self, graph: Graph) -> None:
        self.ops: list[Op] = []
        self._graph = graph
        self._names = Names(graph.values)
        self._made: dict[str, str] = {}

    def of(self, name: str) -> str:
        """The value that every sample has, with one sample."""
        value = self._graph.values[name]
        if _sample_dim(value.type) == _NOWHERE:
            return name
        if name not in self._made:
            self._make(self._graph.producers[name])
        return self._made[name]

    def _make(self, op: Op) -> None:
        for name in op.operands:
            self.of(name)
        results = tuple(
            Value(self._names.fresh(base_name(op.target)), _for_one(value.type), value.layout) for value in op.results
        )
        self._made.update((old.name, new.name) for old, new in zip(op.results, results, strict=True))
        sized = {n: _with_one(a) for n, a in op.arguments.items() if n == operator_of(op).size}
        self.ops.append(replace(with_arguments(op.map_refs(self.of), **sized), results=results))


def _for_one(type_: TensorType) -> TensorType:
    return type_.with_shape(tuple(1 if size == BATCH else size for size in type_.shape))


def _with_one(sizes: Arg) -> Arg:
    return tuple(1 if size == BATCH else size for size in sizes) if isinstance(sizes, tuple) else sizes
