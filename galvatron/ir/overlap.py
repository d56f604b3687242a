"""Collectives of a local graph beside computation: they are started, other ops run, and they are waited for.

An arrangement is all that is decided about it. Rows that are sent may be cut into chunks first (`ir.chunks`), so that
some are computed while others are on their way. A window says what runs beside one collective. The ops of a graph with
windows are those that it had, in an order in which each window has its ops between its start and its wait, and which is
else as near to theirs as it can be.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from galvatron.ir.chunks import in_chunks
from galvatron.ir.collectives import STARTED, WAIT, is_started
from galvatron.ir.graph import Graph, Op, Ref, Value
from galvatron.ir.names import Names


@dataclass(frozen=True)
class Window:
    """A collective, by its result, and the ops that run beside it, by the first result of each."""

    collective: str
    beside: tuple[str, ...]


@dataclass(frozen=True)
class Arrangement:
    """How collectives run beside computation: in how many chunks rows are sent, and windows of the graph with these."""

    chunks: int = 1
    windows: tuple[Window, ...] = ()


AS_IT_STANDS = Arrangement()
"""Nothing runs beside anything."""

CHUNKS = (1, 2, 4)
"""In how many chunks rows may be sent."""


class Order:
    """What has to run before what, in a graph with windows. Ops are numbered as in the graph; a wait has the number of
    its collective, `-1 - number` to tell it from the start.
    """

    def __init__(self, graph: Graph) -> None:
        self._before: dict[int, set[int]] = {}
        made: dict[str, int] = {}
        for index, op in enumerate(graph.ops):
            self._before[index] = {made[name] for name in op.operands if name in made}
            made.update((value.name, index) for value in op.results)
        self._numbers = made

    def add(self, window: Window) -> None:
        """Opens a window; see `independent` for the ops that may run in one."""
        start = self._numbers[window.collective]
        wait, beside = -1 - start, {self._numbers[name] for name in window.beside}
        for before in self._before.values():
            if start in before:
                before.remove(start)
                before.add(wait)
        self._before[wait] = {start, *beside}
        for index in beside:
            self._before[index].add(start)

    def independent(self, start: int) -> set[int]:
        """The ops that neither a collective needs nor its result."""
        needed = self._reached(self._before, start)
        return {index for index in self._before if index >= 0} - needed - self.needing(start) - {start}

    def needing(self, start: int) -> set[int]:
        """The ops that need the result of another."""
        after: dict[int, set[int]] = {index: set() for index in self._before}
        for index, before in self._before.items():
            for one in before:
                after[one].add(index)
        return self._reached(after, start)

    @staticmethod
    def _reached(edges: Mapping[int, Iterable[int]], start: int) -> set[int]:
        found, left = set[int](), [start]
        while left:
            new = set(edges[left.pop()]) - found
            found |= new
            left += new
        return found

    def sorted(self) -> Sequence[int]:
        """All of them, each as early as what it needs and those with lesser numbers allow."""
        after: dict[int, list[int]] = {index: [] for index in self._before}
        for index, before in self._before.items():
            for one in before:
                after[one].append(index)
        missing = {index: len(before) for index, before in self._before.items()}
        ready = [(_place(index), index) for index, count in missing.items() if not count]
        heapq.heapify(ready)
        found: list[int] = []
        while ready:
            _, index = heapq.heappop(ready)
            found.append(index)
            for one in after[index]:
                missing[one] -= 1
                if not missing[one]:
                    heapq.heappush(ready, (_place(one), one))
        return found


def _place(index: int) -> float:
    return index if index >= 0 else -1 - index + 0.5


def arranged(graph: Graph, arrangement: Arrangement) -> Graph:
    """A graph in which nothing was started, with its collectives beside computation."""
    return overlapped(in_chunks(graph, arrangement.chunks), arrangement.windows)


def overlapped(graph: Graph, windows: Sequence[Window]) -> Graph:
    """The same graph with windows."""
    if not windows:
        return graph
    order, names = Order(graph), Names(graph.values)
    for window in windows:
        order.add(window)
    starts = {window.collective: names.fresh(f"{window.collective}.{STARTED}") for window in windows}
    ops = (
        _wait(graph.ops[-1 - index], starts) if index < 0 else _started(graph.ops[index], starts)
        for index in order.sorted()
    )
    return replace(graph, ops=tuple(ops))


def is_arranged(graph: Graph, found: Graph) -> bool:
    """Whether a graph is another one in any arrangement."""
    return any(_is_overlapped(in_chunks(graph, chunks), found) for chunks in CHUNKS)


def _is_overlapped(graph: Graph, found: Graph) -> bool:
    if graph == found:
        return True
    waits = {op.operands[0]: op.result for op in found.ops if op.target == WAIT}
    ops = {_whole(op, waits) for op in found.ops if op.target != WAIT}
    return ops == set(graph.ops) and replace(found, ops=graph.ops) == graph


def _whole(op: Op, waits: Mapping[str, Value]) -> Op:
    """An op as it is where nothing is started."""
    if not is_started(op) or op.result.name not in waits:
        return op
    return replace(op, kwargs=tuple(kv for kv in op.kwargs if kv[0] != STARTED), results=(waits[op.result.name],))


def _started(op: Op, starts: Mapping[str, str]) -> Op:
    """An op as it is started, if there is a window for it."""
    if len(op.results) != 1 or op.result.name not in starts:
        return op
    return replace(op, kwargs=(*op.kwargs, (STARTED, True)), results=(_under_way(op, starts),))


def _wait(op: Op, starts: Mapping[str, str]) -> Op:
    return Op(WAIT, (Ref(_under_way(op, starts).name),), (("axis", op.kwarg("axis")),), op.results, op.source)


def _under_way(op: Op, starts: Mapping[str, str]) -> Value:
    return replace(op.result, name=starts[op.result.name])
