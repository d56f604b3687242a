"""Which values of a program have a gradient, and of which ops it may come in terms."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from galvatron.ir.graph import Graph, Op
from galvatron.ir.ops.foreign import is_foreign
from galvatron.ir.ops.table import differentiated
from galvatron.ir.program import Layer, Program


def takes_terms(op: Op) -> bool:
    """Whether the backward of an op may be given the terms of a gradient one by one, since it is known to be linear in
    it: of an operator of another library nothing is known."""
    return not is_foreign(op.target) if op.function is None else op.function.linear


@dataclass(frozen=True)
class Gradients:
    """The values with a gradient: of each class by formal name, and of the program.

    `formals` has the classes that one class was sharded to under that class's name.
    """

    formals: dict[str, set[str]]
    values: set[str]


def gradients(program: Program, trained: Collection[str] | None = None) -> Gradients:
    """What has a gradient, in any form that has layers.

    A class has one graph for all its layers, so a value has a gradient as soon as its counterpart in one layer does.

    Args:
        trained: the state that would be trained; None: that which is.
    """
    trained = program.trainable if trained is None else trained
    found = Gradients(defaultdict(set), set())
    walked: dict[str, int] = {}
    while True:
        before = _size(found)
        for layer in program.all_layers:
            _mark(program, layer, trained, found, walked)
        if _size(found) == before:
            return found


def untrained(program: Program) -> set[str]:
    """The values of a program with layers that follow from parameters of which none trains, so that they have no
    gradient."""
    return gradients(program, program.trainable | program.parameters).values - gradients(program).values


def _size(found: Gradients) -> int:
    return sum(map(len, found.formals.values())) + len(found.values)


def _mark(program: Program, layer: Layer, trained: Collection[str], found: Gradients, walked: dict[str, int]) -> None:
    """
    Args:
        walked: of each class how many formals had a gradient when its ops were walked; with no more, nothing follows.
    """
    cls = program.class_of[layer.cls]
    graph, formals = cls.graph, found.formals[cls.origin_name]
    formals.update(_where(graph.inputs, (name in found.values for name in layer.operands)))
    formals.update(_where(graph.state, (name in trained for name in layer.state)))
    if walked.get(cls.name) != len(formals):
        spread(graph, formals)
        walked[cls.name] = len(formals)
    found.values.update(n for n, f in zip(layer.results, graph.outputs, strict=True) if f in formals)
    found.values.update(n for f, n in zip(graph.inputs, layer.operands, strict=True) if f.name in formals)


def spread(graph: Graph, differentiable: set[str]) -> None:
    """Adds to the inputs and state of a graph that have a gradient what ops make of them that has one."""
    for op in graph.ops:
        if any(name in differentiable for name in differentiated(op)):
            differentiable.update(v.name for v in op.results if v.type.is_floating)


def _where(values: Iterable, wanted: Iterable[bool]) -> list[str]:
    return [value.name for value, is_wanted in zip(values, wanted, strict=True) if is_wanted]
