"""Reads where ops come from: lines of the model's files, whose paths and code are in a table at the end of a text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from galvatron.ir.graph import Function, Graph, Op, Source
from galvatron.ir.text.scanner import Scanner, token

_SOURCE = token("#[0-9]+")

SourceTable = dict[tuple[str, int], tuple[str, str]]
"""The path of a file and the code of a line, by what the text calls the file and the number of the line."""


class Sources:
    """The lines of the model that ops were given so far, and where each was first: the table comes last in a file.

    And the functions so far, which ops call by name.
    """

    def __init__(self) -> None:
        self.first: dict[tuple[str, int], int] = {}
        self.functions: dict[str, Function] = {}

    def read(self, s: Scanner, scope: str, file: str) -> Source | None:
        """The line after an op, of a file that has its path later."""
        at = s.at
        number = s.take(_SOURCE)
        if number is None:
            return None
        line = s.number(number[1:], at)
        self.first.setdefault((file, line), at)
        return Source(file, line, scope=scope)

    def check(self, s: Scanner, table: SourceTable) -> None:
        """Refuses a line that the table lacks."""
        for (file, line), at in self.first.items():
            if (file, line) not in table:
                s.refuse(f"line {line} of {file!r} is not in the table of sources", at)


def with_sources(graph: Graph, table: SourceTable, functions: Mapping[str, Function]) -> Graph:
    """The graph with the paths and code of a table, calling functions that have them too."""

    def sourced(op: Op) -> Op:
        function = op.function and functions[op.function.name]
        if op.source is None:
            return op if function is None else replace(op, function=function)
        path, code = table[op.source.file, op.source.line]
        return replace(op, source=Source(path, op.source.line, code, op.source.scope), function=function)

    return replace(graph, ops=tuple(map(sourced, graph.ops)))


def functions_with_sources(functions: Mapping[str, Function], table: SourceTable) -> dict[str, Function]:
    """Functions with the paths and code of a table."""
    return {
        name: replace(
            function,
            forward=with_sources(function.forward, table, {}),
            backward=with_sources(function.backward, table, {}),
        )
        for name, function in functions.items()
    }


def read_sources(s: Scanner) -> SourceTable:
    """`file net.py "/home/user/net.py" { 12 "h = self.up(x)" }`: what a file is called here, and its lines."""
    s.expect("sources", "{")
    table: SourceTable = {}
    labels: set[str] = set()
    while not s.accept("}"):
        s.expect("file")
        at = s.at
        label, path = s.name(), s.name()
        if label in labels:
            s.refuse(f"a second file {label!r}", at)
        labels.add(label)
        s.expect("{")
        while not s.accept("}"):
            at = s.at
            line = s.integer()
            if (label, line) in table:
                s.refuse(f"line {line} is given twice", at)
            table[label, line] = (path, s.name())
    return table
