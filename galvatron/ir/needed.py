"""What a program reads of its batch inputs: which of them some values depend on, and what they are looked up in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from galvatron.ir.either import EITHER
from galvatron.ir.graph import Graph, Op
from galvatron.ir.index_bounds import places
from galvatron.ir.ops.rearrangements import OPERATORS as REARRANGEMENTS
from galvatron.ir.ops.table import operator_of
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


@dataclass(frozen=True)
class Table:
    """What the numbers of a batch input are looked up in: they are at least 0 and less than `rows`, or the one that is
    `ignored`."""

    rows: int
    ignored: int | None = None

    def and_in(self, other: Table) -> Table:
        """What both allow."""
        return Table(min(self.rows, other.rows), self.ignored if self.ignored == other.ignored else None)


def tables_of(program: Program) -> dict[str, Table]:
    """For each batch input all of whose numbers are rows of an embedding or classes of a loss, what these allow."""
    found: dict[str, Table] = {}
    sources = {value.name: value.name for value in program.inputs}
    for layer in program.all_layers:
        graph = program.class_of[layer.cls].graph
        formals = zip(layer.operands, graph.inputs, strict=True)
        inside = {formal.name: sources[name] for name, formal in formals if name in sources}
        for op in graph.ops:
            if op.name in REARRANGEMENTS and op.overload != "dtype" and op.operands[0] in inside:
                inside[op.result.name] = inside[op.operands[0]]
            for index, table in _looked_up(op, graph):
                if (name := inside.get(index)) is not None:
                    found[name] = table.and_in(found.get(name, table))
        results = zip(layer.results, graph.outputs, strict=True)
        sources |= {name: inside[formal] for name, formal in results if formal in inside}
    return found


def _looked_up(op: Op, graph: Graph) -> Iterator[tuple[str, Table]]:
    """The values whose numbers an op looks up, and in what."""
    operator = operator_of(op)
    if op.namespace != "aten" or not (operator.looks_up or operator.special):
        return
    ignored = None if operator.looks_up else op[operator.special[0]]  # a row without a gradient is a row
    for index, rows in places(op, graph.types):
        if isinstance(rows, int):
            yield index, Table(rows, ignored if isinstance(ignored, int) else None)
