"""The flat op graph that a program computes, in the forms before it is sharded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from galvatron.ir.graph import Graph, Op, Value
from galvatron.ir.program import Layer, LayerClass, Program


def inlined(program: Program) -> Graph:
    """The whole computation of a program as one graph: its own, or that of its layers, one after the other.

    Values that pass between layers keep their names in the program; those inside a layer get the layer's name before
    their own.
    """
    if program.graph is not None:
        return program.graph
    ops = [op for layer in program.layers for op in _ops(layer, program.class_of[layer.cls])]
    read = {name for layer in program.layers for name in layer.state}
    state = tuple(Value(s.name, s.compute_type(program.precision)) for s in program.state if s.name in read)
    return Graph(program.inputs, state, tuple(ops), program.results)


def _ops(layer: Layer, cls: LayerClass) -> Iterator[Op]:
    graph = cls.graph
    bound = dict(zip((v.name for v in graph.inputs), layer.operands, strict=True))
    bound |= dict(zip((v.name for v in graph.state), layer.state, strict=True))
    bound |= dict(zip(graph.outputs, layer.results, strict=True))

    def name(formal: str) -> str:
        return bound.get(formal, f"{layer.name}/{formal}")

    for op in graph.ops:
        results = tuple(replace(v, name=name(v.name)) for v in op.results)
        yield replace(op.map_refs(name), results=results)
