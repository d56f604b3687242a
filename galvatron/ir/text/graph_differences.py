"""In what two op graphs differ, as text: op by op, and in what they are given and return.

Values are matched through the graphs, so that their names and numbers count for nothing. What changed alike in several
layers is shown once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher

from galvatron.ir.alignment import Alignment, aligned
from galvatron.ir.graph import Graph, Op
from galvatron.ir.layout import Mesh
from galvatron.ir.text.graph_lines import op_text, value_lines, value_names
from galvatron.ir.text.lines import Writer
from galvatron.ir.text.names import sigiled, unmark
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
class Side:
    """One of the two graphs, with the mesh that its values are placed on."""

    graph: Graph
    mesh: Mesh = ()


def graph_differences(first: Side, second: Side, *, formal: bool = True, typed: bool = True) -> Iterator[str]:
    """The lines that say in what two graphs differ: none where they compute the same ops on the same values, given the
    same and for the same results.

    Args:
        formal: whether inputs and state are called anything, as those of a class; else they are known by their names.
        typed: whether types and layouts count, as they do not between a class and what a rank computes of it.
    """
    given = _same_formals(first.graph, second.graph) if formal else None
    found = aligned(first.graph, second.graph, given)
    names = _names(found, first.graph, second.graph)
    yield from line_differences(_signature(first, {}, typed), _signature(second, names, typed))
    yield from _op_differences(first, second, found, names, typed)
    if not found.returned:
        outputs = [names.get(name, name) for name in second.graph.outputs]
        yield from line_differences([_returned(first.graph.outputs)], [_returned(outputs)])


def line_differences(first: Iterable[str], second: Iterable[str]) -> Iterator[str]:
    """The lines that one of two texts alone has, after the sign of the text."""
    own, other = list(first), list(second)
    for kind, a, b, c, d in SequenceMatcher(None, own, other, autojunk=False).get_opcodes():
        if kind != "equal":
            yield from (f"- {line}" for line in own[a:b] if line)
            yield from (f"+ {line}" for line in other[c:d] if line)


def _same_formals(first: Graph, second: Graph) -> dict[str, str]:
    """Which inputs and state of two graphs are the same: those of one name, and what is left in order."""
    found: dict[str, str] = {}
    for own, other in ((first.inputs, second.inputs), (first.state, second.state)):
        names, others = [v.name for v in own], [v.name for v in other]
        both = set(names) & set(others)
        found |= {name: name for name in both}
        found |= zip((n for n in names if n not in both), (n for n in others if n not in both), strict=False)
    return found


def _names(found: Alignment, before: Graph, after: Graph) -> dict[str, str]:
    """What values of the second graph are called: as those of the first that they are; what is new and has the name of
    another one has a prime."""
    names = {same: name for name, same in found.values.items()}
    return names | {name: f"{name}'" for name in after.values if name not in names and name in before.values}


def _signature(side: Side, names: Mapping[str, str], typed: bool) -> list[str]:
    """What a graph is given, one a line."""
    w, lines = Writer(lenient=True), list[str]()
    for keyword, values in (("input", side.graph.inputs), ("state", side.graph.state)):
        called = [replace(value, name=names.get(value.name, value.name)) for value in values]
        if typed:
            lines += (unmark(line.text) for one in called for line in value_lines(keyword, [one], w, None, side.mesh))
        else:
            lines += (f"{keyword} {_sigiled(one.name)}" for one in called)
    return lines


def _returned(names: Sequence[str]) -> str:
    return f"return {unmark(value_names(names))}"


def _sigiled(name: str) -> str:
    return unmark(sigiled("%", name))


def _op_differences(
    first: Side, second: Side, found: Alignment, names: Mapping[str, str], typed: bool
) -> Iterator[str]:
    alike: dict[tuple[str, ...], list[Hunk]] = {}
    for hunk in _hunks(_changes(first, second, found, names, typed)):
        alike.setdefault(hunk.pattern, []).append(hunk)
    for hunk, *others in alike.values():
        yield one_line(f"in {hunk.scope or 'forward'}")
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
            times = f" ({len(others)} times)" if len(others) > 1 else ""
            yield one_line(f"  and the same in {', '.join(shown)}{times}")


def _hunks(found: Iterable[Change]) -> Iterator[Hunk]:
    scope, changes = "", list[Change]()
    for change in found:
        own = change.op.source.scope if change.op.source else ""
        if changes and own != scope:
            yield Hunk(scope, tuple(changes))
            changes = []
        scope = own
        changes.append(change)
    if changes:
        yield Hunk(scope, tuple(changes))


def _changes(first: Side, second: Side, found: Alignment, names: Mapping[str, str], typed: bool) -> Iterator[Change]:
    """Every op that is in one graph alone or changed, in the order of both; values are called as in the first graph."""
    before, after = first.graph, second.graph

    moved = {found.ops[place] for place in found.moved}

    def added(start: int, stop: int) -> Iterator[Change]:
        for place, op in enumerate(after.ops[start:stop], start):
            note = "moved here" if place in moved else _note("for", op, found.instead, {})
            yield Change("+", _renamed(op, names), second.mesh, note)

    at = 0
    for place, op in enumerate(before.ops):
        there = found.ops.get(place)
        if there is None or place in found.moved:
            note = "moved" if place in found.moved else _note("now", op, found.instead, names)
            yield Change("-", op, first.mesh, note)
            continue
        yield from added(at, there)
        if place in found.changed or (typed and _placed(op) != _placed(after.ops[there])):
            yield Change("-", op, first.mesh)
            yield Change("+", _renamed(after.ops[there], names), second.mesh)
        at = there + 1
    yield from added(at, len(after.ops))


def _placed(op: Op) -> list[tuple[object, ...]]:
    return [(value.type, value.layout) for value in op.results]


def _renamed(op: Op, names: Mapping[str, str]) -> Op:
    results = tuple(replace(value, name=names.get(value.name, value.name)) for value in op.results)
    return replace(op.map_refs(lambda name: names.get(name, name)), results=results)


def _note(word: str, op: Op, instead: Mapping[str, str], names: Mapping[str, str]) -> str:
    """What is read in the place of the results of an op, or in whose place these are."""
    others = [instead[value.name] for value in op.results if value.name in instead]
    return f"{word} {', '.join(_sigiled(names.get(name, name)) for name in others)}" if others else ""
