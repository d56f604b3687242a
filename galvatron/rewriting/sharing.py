"""Equal computations once, and values named in order."""

from __future__ import annotations

from dataclasses import replace

from galvatron.ir.graph import Graph, Op, Value
from galvatron.ir.names import Names, base_name
from galvatron.ir.ops.schemas import schema_of


def without_repeats(graph: Graph, trainable: frozenset[str]) -> Graph:
    """The graph with equal deterministic ops computed once, where no trainable state takes part.

    Masks, positions and rotary tables are shared this way. What depends on trainable state stays as the model has it:
    a value shared between two layers would make them unequal.
    """
    trained, first, same = set(trainable), {}, {}
    kept: list[Op] = []
    for original in graph.ops:
        op = original if same.keys().isdisjoint(original.operands) else original.map_refs(lambda n: same.get(n, n))
        if not trained.isdisjoint(op.operands):
            trained.update(value.name for value in op.results)
        elif op.function is not None or not schema_of(op.target).random:
            key = (replace(op, results=()), tuple(value.type for value in op.results))
            if key in first:
                same.update((v.name, w.name) for v, w in zip(op.results, first[key].results, strict=True))
                continue
            first[key] = op
        kept.append(op)
    return replace(graph, ops=tuple(kept), outputs=tuple(same.get(name, name) for name in graph.outputs))


def numbered(graph: Graph) -> Graph:
    """The graph with its results named after their ops, in order: `linear`, `linear_1`, …"""
    names = Names(value.name for value in (*graph.inputs, *graph.state))
    renamed: dict[str, str] = {}
    ops: list[Op] = []
    for op in graph.ops:
        read = op.map_refs(lambda name: renamed.get(name, name))
        renamed.update((value.name, names.fresh(base_name(op.target))) for value in op.results)
        ops.append(replace(read, results=tuple(Value(renamed[v.name], v.type, v.layout) for v in op.results)))
    return replace(graph, ops=tuple(ops), outputs=tuple(renamed.get(name, name) for name in graph.outputs))
