"""In what two programs differ, as text: op by op where they compute, line by line elsewhere.

Everything that makes programs unequal makes a line, but for names of values in graphs.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, replace
from typing import TypeVar

from galvatron.ir.alignment import aligned
from galvatron.ir.graph import Function, Graph
from galvatron.ir.inlined import inlined
from galvatron.ir.program import Form, LayerClass, Program
from galvatron.ir.results import Check, Reached, Result, Update
from galvatron.ir.text.graph_differences import Side, graph_differences, line_differences
from galvatron.ir.text.graph_lines import function_head
from galvatron.ir.text.names import quote, unmark
from galvatron.ir.text.printer import class_head, table_lines
from galvatron.ir.text.records import entries
from galvatron.printing import one_line

_SPACES = re.compile(r'("(?:[^"\\]|\\.)*")|\s+')
"""Strings, and the spaces between words."""


def program_differences(first: Program, second: Program) -> list[str]:
    """The lines that say in what two programs differ, in forms that may differ too; none where they are equal but for
    names of values in graphs. They need not be valid."""
    if first == second:
        return []
    typed = (first.form >= Form.SHARDED) == (second.form >= Form.SHARDED)
    lines: list[str] = []
    for title, formal, sides in (*_functions(first, second), *_graphs(first, second)):
        changed = list(graph_differences(*sides, formal=formal, typed=typed))
        lines += [one_line(title), *(f"  {line}" for line in changed)] if changed else []
    lines += line_differences(_tables(first, second), _tables(_called_as(first, second), first))
    return lines or _unsaid(first, second)


_Result = TypeVar("_Result", Update, Result, Check, Reached)
_EMPTY = Side(Graph((), (), (), ()))
_Pair = tuple[str, bool, tuple[Side, Side]]
"""Graphs that belong together, with a title, and whether their inputs may be called anything."""


def _graphs(first: Program, second: Program) -> Iterator[_Pair]:
    if min(first.form, second.form) is Form.CAPTURED:
        if max(first.form, second.form) < Form.SHARDED and _fits(first) and _fits(second):
            yield "graph", False, (Side(inlined(first, numbered=True)), Side(inlined(second, numbered=True)))
        return
    own = {cls.name: cls for cls in first.classes}
    for cls in second.classes:
        before = own.pop(cls.name, None) or first.class_of.get(cls.base)
        if before is None:
            yield f"class @{cls.name}, new", True, (_EMPTY, _side(cls))
        else:
            name = f"class @{cls.name}" if before.name == cls.name else f"class @{cls.name} of @{before.name}"
            yield name, True, (_side(before), _side(cls))
    bases = {cls.base for cls in second.classes}
    for cls in own.values():
        if cls.name not in bases:
            yield f"class @{cls.name}, gone", True, (_side(cls), _EMPTY)


def _side(cls: LayerClass) -> Side:
    return Side(cls.graph, cls.mesh)


def _fits(program: Program) -> bool:
    """Whether each layer calls a class, with as many values as that has."""
    graphs = {cls.name: cls.graph for cls in program.classes}
    return all(
        (graph := graphs.get(layer.cls)) is not None
        and (len(graph.inputs), len(graph.state), len(graph.outputs))
        == (len(layer.operands), len(layer.state), len(layer.results))
        for layer in program.layers
    )


def _functions(first: Program, second: Program) -> Iterator[_Pair]:
    """Forward and backward of the functions that both call; what only one calls is among the tables."""
    others = dict(_numbered(second.functions))
    for key, own in _numbered(first.functions):
        if (other := others.get(key)) is not None:
            yield f"function {own.name}", True, (Side(own.forward), Side(other.forward))
            yield f"backward of function {own.name}", True, (Side(own.backward), Side(other.backward))


def _numbered(functions: Iterable[Function]) -> Iterator[tuple[tuple[str, int], Function]]:
    """Functions by name; of those of one name, by how many came before."""
    met: Counter[str] = Counter()
    for function in functions:
        yield (function.name, met[function.name]), function
        met[function.name] += 1


def _called_as(first: Program, second: Program) -> Program:
    """The second program, in which results of its graph are called as they are in the first one."""
    if first.graph is None or second.graph is None:
        return second
    found = aligned(first.graph, second.graph)
    return _with_results_called(second, {same: name for name, same in found.values.items()})


def _with_results_called(program: Program, names: Mapping[str, str]) -> Program:
    """A captured program in which what a step gives has other names."""

    def called(results: tuple[_Result, ...]) -> tuple[_Result, ...]:
        return tuple(replace(one, value=names.get(one.value, one.value)) for one in results)

    return replace(
        program,
        output=names.get(program.output, program.output),
        updates=called(program.updates),
        outputs=called(program.outputs),
        checks=called(program.checks),
        reached=called(program.reached),
    )


def _tables(program: Program, other: Program) -> list[str]:
    """The lines of a program but those in its graphs, without columns; of its cluster only the name, where the other
    one has none."""
    bare = replace(program, classes=(), graph=None, cluster=program.cluster if other.cluster else None)
    lines = [_SPACES.sub(lambda found: found[1] or " ", line).strip() for line in table_lines(bare)]
    if program.cluster and not other.cluster:
        lines.append(f"cluster {quote(program.cluster.name)}")
    lines += map(function_head, program.functions)
    for cls in program.classes:
        lines.append(unmark(class_head(cls)))
        if cls.cost is not None:
            costs = (f"{name} = {text}" for name, text, _ in entries(cls.cost, lenient=True))
            lines += [f"class @{cls.name} cost {cost}" for cost in costs]
    return lines


def _unsaid(first: Program, second: Program) -> list[str]:
    """A line about what is not equal in programs that differ in no line; none where that is names of values."""
    own, other = _numbered_values(first), _numbered_values(second)
    names = [one.name for one in fields(Program) if getattr(own, one.name) != getattr(other, one.name)]
    return [f"the programs are not equal, but no line says in what: {', '.join(names)}"] if names else []


def _numbered_values(program: Program) -> Program:
    """A program in whose graphs values are called by the order in which they are met."""
    classes = tuple(replace(cls, graph=_with_numbers(cls.graph, {})) for cls in program.classes)
    if program.graph is None:
        return replace(program, classes=classes)
    names: dict[str, str] = {}
    graph = _with_numbers(program.graph, names)
    return _with_results_called(replace(program, graph=graph, classes=classes), names)


def _with_numbers(graph: Graph, names: dict[str, str]) -> Graph:
    """A graph with numbers for names; `names` gets those of its values."""

    def number(name: str) -> str:
        return names.setdefault(name, f"value {len(names)}")

    inputs, state = (
        tuple(replace(value, name=number(value.name)) for value in values) for values in (graph.inputs, graph.state)
    )
    ops = []
    for op in graph.ops:
        read = op.map_refs(number)
        results = tuple(replace(value, name=number(value.name)) for value in op.results)
        ops.append(replace(read, results=results, function=op.function and _function_with_numbers(op.function)))
    return replace(graph, inputs=inputs, state=state, ops=tuple(ops), outputs=tuple(map(number, graph.outputs)))


def _function_with_numbers(function: Function) -> Function:
    names: dict[str, str] = {}
    forward = _with_numbers(function.forward, names)
    return replace(function, forward=forward, backward=_with_numbers(function.backward, names))
