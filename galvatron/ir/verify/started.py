"""Rules of collectives that are started and waited for later."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from galvatron.ir.collectives import WAIT, is_started
from galvatron.ir.graph import Graph, Op
from galvatron.ir.verify.graphs import Scope, Violation


def started_collectives(scope: Scope) -> Iterator[Violation]:
    """What a started collective gives is read by one `comm.wait` and by nothing else, and does not leave its layer.

    Since a value is made before it is read, all that reads the result stands behind the wait.
    """
    graph = scope.graph
    started = {op.result.name: op for op in graph.ops if is_started(op)}
    waits: dict[str, Op] = {}
    for index, op in enumerate(graph.ops):
        if op.target == WAIT:
            if problem := _wait_problem(op, started, waits, graph):
                yield ("op", scope.owner, index), problem
            waits.setdefault(op.operands[0], op)
        elif under_way := [name for name in op.operands if name in started]:
            told = f"{op.target} reads %{under_way[0]}, which is under way until {WAIT} gives it"
            yield ("op", scope.owner, index), told
    for index, op in enumerate(graph.ops):
        if not is_started(op):
            continue
        if op.result.name in graph.outputs:
            yield ("op", scope.owner, index), f"%{op.result.name} leaves the layer while it is under way"
        elif op.result.name not in waits:
            yield ("op", scope.owner, index), f"%{op.result.name} is started, and no {WAIT} waits for it"


def _wait_problem(op: Op, started: Mapping[str, Op], waits: Mapping[str, Op], graph: Graph) -> str:
    """What is wrong with a wait, behind those that stand before it."""
    name, result, before = op.operands[0], op.result, graph.values[op.operands[0]]
    if name not in started:
        return f"{WAIT}: %{name} was not started"
    if name in waits:
        return f"{WAIT}: %{name} is waited for by %{waits[name].result.name} already"
    if op.kwarg("axis") != started[name].kwarg("axis"):
        return f"{WAIT}: %{name} is under way on {started[name].kwarg('axis')}, not on {op.kwarg('axis')}"
    if (before.type, before.layout) != (result.type, result.layout):
        return f"{WAIT}: %{result.name} is not of the type and in the layout of %{name}"
    return ""
