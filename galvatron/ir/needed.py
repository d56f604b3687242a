"""Which batch inputs some values of a program depend on."""

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
