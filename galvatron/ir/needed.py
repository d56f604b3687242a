"""What a program reads of its batch inputs: which of them some values depend on, and what they are looked up in."""

from __future__ import annotations

from collections.abc import Iterable

from galvatron.ir.either import EITHER
from galvatron.ir.program import Program


def inputs_of(program: Program, values: Iterable[str]) -> frozenset[str]:
    """The batch inputs that some values of a program of layers are computed from in a step that only evaluates."""
    needed = set(values)
    for layer in reversed(program.all_layers):
        graph = program.class_of[layer.cls].graph
        inside = {formal for name, formal in zip(layer.results, graph.outputs, strict=True) if name in needed}
        for op in reversed(graph.ops):
            if any(value.name in inside for value in op.results):
                inside.update(op.operands[1:] if op.target == EITHER else op.operands)
        needed.update(name for name, formal in zip(layer.operands, graph.inputs, strict=True) if formal.name in inside)
    return frozenset(needed & {value.name for value in program.inputs})


def tables_of(program: Program) -> dict[str, int]:
    """For each batch input that is an index of an embedding as it is, the rows of the smallest such table."""
    found: dict[str, int] = {}
    inputs = {value.name for value in program.inputs}
    for layer in program.all_layers:
        graph = program.class_of[layer.cls].graph
        named = {formal.name: name for name, formal in zip(layer.operands, graph.inputs, strict=True)}
        for op in graph.ops:
            if op.name != "embedding" or op.namespace != "aten":
                continue
            weight, index = op.operands[:2]
            rows, name = graph.types[weight].shape[0], named.get(index)
            if name in inputs and isinstance(rows, int):
                found[name] = min(rows, found.get(name, rows))
    return found
