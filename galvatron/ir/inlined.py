"""The flat op graph that a program computes, in the forms before it is sharded."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace

from galvatron.ir.graph import Graph, Op, Value
from galvatron.ir.names import Names
from galvatron.ir.program import Layer, Program


def inlined(program: Program, *, numbered: bool = False) -> Graph:
    """The whole computation of a program as one graph: its own, or that of its layers, one after the other.

    Values that pass between layers keep their names in the program; those inside a layer get the layer's name before
    their own, or are `numbered`, as in a captured program. Ops are in the modules of their layer, and not in those of
    the layer that the class was made from.
    """
    if program.graph is not None:
        return program.graph
    layers = program.layers
    names = Names(name for layer in layers for name in (*layer.operands, *layer.state, *layer.results))
    made_from = {layer.cls: layer for layer in reversed(layers)}
    ops: list[Op] = []
    for layer in layers:
        cls, first = program.class_of[layer.cls], made_from[layer.cls]
        called = {
            value.name: names.fresh(_NUMBER.sub("", value.name)) if numbered else f"{layer.name}/{value.name}"
            for op in cls.graph.ops
            for value in op.results
            if value.name not in cls.graph.outputs
        }
        ops += _ops(layer, cls.graph, called, _modules(first.state, layer.state))
    read = {name for layer in layers for name in layer.state}
    state = tuple(Value(s.name, s.compute_type(program.precision)) for s in program.state if s.name in read)
    return Graph(program.inputs, state, tuple(ops), program.results)


_NUMBER = re.compile(r"(?<=.)_\d+$")


def _ops(layer: Layer, graph: Graph, called: dict[str, str], module: Callable[[str], str]) -> Iterator[Op]:
    bound = called | dict(zip((v.name for v in graph.inputs), layer.operands, strict=True))
    bound |= dict(zip((v.name for v in graph.state), layer.state, strict=True))
    bound |= dict(zip(graph.outputs, layer.results, strict=True))

    def name(formal: str) -> str:
        return bound.get(formal, f"{layer.name}/{formal}")  # a program that is compared need not be valid

    for op in graph.ops:
        results = tuple(replace(v, name=name(v.name)) for v in op.results)
        source = op.source and replace(op.source, scope=module(op.source.scope))
        yield replace(op.map_refs(name), results=results, source=source)


def _modules(first: tuple[str, ...], own: tuple[str, ...]) -> Callable[[str], str]:
    """From a module of one layer to that of an equal layer: each has its state in modules, whose paths differ where
    those of the layers do."""
    pairs = [(one.split("."), other.split(".")) for one, other in zip(first, own, strict=True)]
    pairs = [(one, other) for one, other in pairs if one != other and len(one) == len(other)]

    def module(scope: str) -> str:
        path = scope.split(".")
        shared, other = max(((_shared(path, one), other) for one, other in pairs), default=(0, []), key=lambda p: p[0])
        return ".".join((*other[:shared], *path[shared:]))

    return module


def _shared(path: list[str], other: list[str]) -> int:
    """With how many modules two paths begin alike."""
    return next((i for i, (a, b) in enumerate(zip(path, other, strict=False)) if a != b), min(len(path), len(other)))
