"""In what two programs differ, as text: op by op where they compute, line by line elsewhere.

Values are matched through the graphs, so that names, numbers and columns that move count for nothing. What changed
alike in several layers is shown once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from difflib import SequenceMatcher

from galvatron.ir.alignment import Alignment, aligned
from galvatron.ir.graph import Graph, Op
from galvatron.ir.inlined import inlined
from galvatron.ir.layout import Mesh
from galvatron.ir.program import Form, LayerClass, Program
from galvatron.ir.text.graph_lines import op_text
from galvatron.ir.text.names import quote, sigiled, unmark
from galvatron.ir.text.printer import table_lines
from galvatron.ir.text.records import entries
from galvatron.printing import one_line

_NAME = re.compile(r"%(?:\"[^\"]*\"|[^\s,()=:]+)")
_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True)
class Change:
    """An op that one of the graphs lacks (`-`, `+`), or that has other arguments (both, one after the other); with the
    mesh that its results are placed on."""

    sign: str
    op: Op
    mesh: Mesh
    note: str = ""

    def __str__(self) -> str:
        return f"{self.sign} {op_text(self.op, self.mesh)}{self.note and f'  // {self.note}'}"


@dataclass(frozen=True)
class Hunk:
    """Changes in one module of the model (`scope`), behind each other or with the same ops between them."""

    scope: str
    changes: tuple[Change, ...]

    @property
    def pattern(self) -> tuple[str, ...]:
        """Equal for hunks that differ in the names of values and in numbers of layers."""
        names: dict[str, str] = {}

        def plain(text: str) -> str:
            return _NAME.sub(lambda found: names.setdefault(found.group(), f"%{len(names)}"), text)

        return _NUMBER.sub("#", self.scope), *(plain(str(change)) for change in self.changes)


@dataclass(frozen=True)
class _Side:
    """One of the two graphs, with the mesh that its values are placed on."""

    graph: Graph
    mesh: Mesh = ()

    @staticmethod
    def of(layers: LayerClass) -> _Side:
        return _Side(layers.graph, layers.mesh)


def _graph_differences(first: _Side, second: _Side) -> Iterator[str]:
    """The lines that say in what two graphs differ: none where they compute the same ops on the same values."""
    alike: dict[tuple[str, ...], list[Hunk]] = {}
    for hunk in _hunks(first, second):
        alike.setdefault(hunk.pattern, []).append(hunk)
    for hunk, *others in alike.values():
        yield f"in {hunk.scope or 'forward'}"
        line = None
        for change in hunk.changes:
            source = change.op.source
            if source is not None and source != line:
                line = source
                yield one_line(f"  {source}  {source.code}".rstrip())
            yield f"  {change}"
        if others:
            scopes = list(dict.fromkeys(other.scope or "forward" for other in others))
            shown = scopes if len(scopes) < 4 else [*scopes[:2], "...", scopes[-1]]
            yield f"  and the same in {', '.join(shown)}" + (f" ({len(others)} times)" if len(others) > 1 else "")


def _hunks(first: _Side, second: _Side) -> Iterator[Hunk]:
    scope, changes = "", list[Change]()
    for change in _changes(first, second, aligned(first.graph, second.graph)):
        own = change.op.source.scope if change.op.source else ""
        if changes and own != scope:
            yield Hunk(scope, tuple(changes))
            changes = []
        scope = own
        changes.append(change)
    if changes:
        yield Hunk(scope, tuple(changes))


def _changes(first: _Side, second: _Side, found: Alignment) -> Iterator[Change]:
    """Every op that is in one graph alone or changed, in the order of both; values are called as in the first graph."""
    before, after = first.graph, second.graph
    names = {same: name for name, same in found.values.items()}
    names |= {name: f"{name}'" for name in after.values if name not in names and name in before.values}

    def added(ops: Iterable[Op]) -> Iterator[Change]:
        for op in ops:
            yield Change("+", _renamed(op, names), second.mesh, _note("for", op, found.instead, {}))

    at = 0
    for place, op in enumerate(before.ops):
        there = found.ops.get(place)
        if there is None:
            yield Change("-", op, first.mesh, _note("now", op, found.instead, names))
            continue
        yield from added(after.ops[at:there])
        if place in found.changed:
            yield Change("-", op, first.mesh)
            yield Change("+", _renamed(after.ops[there], names), second.mesh)
        at = there + 1
    yield from added(after.ops[at:])


def _renamed(op: Op, names: Mapping[str, str]) -> Op:
    results = tuple(replace(value, name=names.get(value.name, value.name)) for value in op.results)
    return replace(op.map_refs(lambda name: names.get(name, name)), results=results)


def _note(word: str, op: Op, instead: Mapping[str, str], names: Mapping[str, str]) -> str:
    """What is read in the place of the results of an op, or in whose place these are."""
    others = [instead[value.name] for value in op.results if value.name in instead]
    return f"{word} {', '.join(unmark(sigiled('%', names.get(name, name))) for name in others)}" if others else ""


def program_differences(first: Program, second: Program) -> list[str]:
    """The lines that say in what two programs differ, in forms that may differ too; none where they are equal but for
    names of values."""
    lines: list[str] = []
    for title, pair in _graphs(first, second):
        changed = list(_graph_differences(*pair))
        lines += [title, *(f"  {line}" for line in changed)] if changed else []
    return [*lines, *_table_differences(_tables(first, second), _tables(second, first))]


_EMPTY = _Side(Graph((), (), (), ()))


def _graphs(first: Program, second: Program) -> Iterator[tuple[str, tuple[_Side, _Side]]]:
    """The graphs of both that belong together, with a title."""
    if min(first.form, second.form) is Form.CAPTURED:
        if max(first.form, second.form) < Form.SHARDED:
            yield "graph", (_Side(inlined(first)), _Side(inlined(second)))
        return
    own = {cls.name: cls for cls in first.classes}
    for cls in second.classes:
        before = own.pop(cls.name, None) or first.class_of.get(cls.base)
        if before is None:
            yield f"class @{cls.name}, new", (_EMPTY, _Side.of(cls))
        else:
            name = f"class @{cls.name}" if before.name == cls.name else f"class @{cls.name} of @{before.name}"
            yield name, (_Side.of(before), _Side.of(cls))
    bases = {cls.base for cls in second.classes}
    for cls in own.values():
        if cls.name not in bases:
            yield f"class @{cls.name}, gone", (_Side.of(cls), _EMPTY)


def _tables(program: Program, other: Program) -> list[str]:
    """The lines of a program but those of its graphs, without columns; of its cluster only the name, where the other
    one has none."""
    bare = replace(program, classes=(), graph=None, cluster=program.cluster if other.cluster else None)
    lines = [" ".join(line.split()) for line in table_lines(bare)]
    if program.cluster and not other.cluster:
        lines.append(f"cluster {quote(program.cluster.name)}")
    for cls in program.classes:
        if cls.cost is not None:
            costs = (f"{name} = {text}" for name, text, _ in entries(cls.cost, lenient=True))
            lines += [f"class @{cls.name} cost {cost}" for cost in costs]
    return lines


def _table_differences(first: Iterable[str], second: Iterable[str]) -> Iterator[str]:
    own, other = list(first), list(second)
    for kind, a, b, c, d in SequenceMatcher(None, own, other, autojunk=False).get_opcodes():
        if kind != "equal":
            yield from (f"- {line}" for line in own[a:b] if line)
            yield from (f"+ {line}" for line in other[c:d] if line)
