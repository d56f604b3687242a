"""Collectives beside computation: the order of a graph with windows, and texts that break what a wait is for."""

from __future__ import annotations

import pytest

from galvatron.ir.graph import Graph
from galvatron.ir.layout import Axis
from galvatron.ir.overlap import Window, is_arranged, overlapped
from galvatron.ir.text import parse_graph, print_graph
from galvatron.ir.types import LOCAL_BATCH
from galvatron.ir.verify.graphs import Scope, collectives
from galvatron.ir.verify.started import started_collectives
from tests.ir.test_language import fragment

ROWS = " : f32[2*b, 64] (S(0, by=%ids))"
EXAMPLE = fragment("graph")

EXPERTS = """
graph {
  input %x : f32[b, 64] (S(0))
  input %rows : f32[2*b, 64] (S(0))
  input %ids : i64[2*b] (S(0))
  state %up : f32[64, 64] (R')
  state %down : f32[64, 64] (R')
  %shared = aten.linear.default(%x, %up) : f32[b, 64] (S(0))
  %there = comm.dispatch(%rows, axis="ep", dim=0, outer=1, by=%ids, size=8) : f32[2*b, 64] (S(0, by=%ids))
  %gelu = aten.gelu.default(%there) : f32[2*b, 64] (S(0, by=%ids))
  %back = comm.combine(%gelu, axis="ep", dim=0, outer=1, by=%ids, size=8) : f32[2*b, 64] (S(0))
  %sum = aten.sum.dim_IntList(%back, [1], true) : f32[2*b, 1] (S(0))
  %shared_1 = aten.linear.default(%shared, %down) : f32[b, 64] (S(0))
  %tanh = aten.tanh.default(%shared_1) : f32[b, 64] (S(0))
  return %tanh, %sum
}
"""
"""A shared expert in two parts, of which one is there before the others' rows are sent, and one after they are back."""


def order(graph: Graph) -> list[str]:
    return [op.results[0].name for op in graph.ops]


def test_what_a_window_has_runs_between_its_start_and_its_wait() -> None:
    windows = (Window("there", ("shared",)), Window("back", ("shared_1", "tanh")))
    found = overlapped(parse_graph(EXPERTS), windows)
    there = ["there.started", "shared", "there"]
    assert order(found) == [*there, "gelu", "back.started", "shared_1", "tanh", "back", "sum"]
    assert parse_graph(print_graph(found)) == found
    assert is_arranged(parse_graph(EXPERTS), found) and not is_arranged(found, parse_graph(EXPERTS))
    assert not list(started_collectives(scope(found)))


def test_one_op_may_run_beside_the_first_collective_where_it_stood_behind_the_second() -> None:
    found = overlapped(parse_graph(EXPERTS), (Window("there", ("shared_1",)), Window("back", ("tanh",))))
    assert order(found) == [
        "shared", "there.started", "shared_1", "there", "gelu", "back.started", "tanh", "back", "sum",
    ]  # fmt: skip


def test_no_window_changes_nothing() -> None:
    graph = parse_graph(EXPERTS)
    assert overlapped(graph, ()) is graph


def scope(graph: Graph) -> Scope:
    return Scope(graph, "experts", frozenset({LOCAL_BATCH}), (Axis("ep", 2, 1),))


def broken(text: str) -> list[tuple[int, str]]:
    """What the rules say of a graph, and of which op."""
    graph = scope(parse_graph(text))
    return [(locus[-1], told) for rule in (collectives, started_collectives) for locus, told in rule(graph)]  # type: ignore[misc]  # of an op


def test_the_example_of_the_page_is_valid() -> None:
    assert not broken(EXAMPLE)


WAIT = next(f"{line}\n" for line in EXAMPLE.splitlines() if "comm.wait" in line)
EDITS = {
    "the wait removed": (WAIT, "", "default(%rows.dispatch)", "default(%rows.dispatch.started)"),
    "read before the wait": (WAIT, f"  %early = aten.gelu.default(%rows.dispatch.started){ROWS}\n{WAIT}"),
    "never waited for": (WAIT, f"  %rows.dispatch = aten.empty_like.default(%rows){ROWS}\n"),
    "waited for twice": (WAIT, WAIT + WAIT.replace("%rows.dispatch =", "%again =")),
    "not started": (", started=true", ""),
    "another axis": ('started, axis="ep"', 'started, axis="dp"'),
    "another layout": (WAIT, WAIT.replace("S(0, by=%ids)", "S(0)")),
    "leaves the layer": ("return %shared,", "return %rows.dispatch.started,"),
    "a flag that says no": ("started=true", "started=false"),
}
TOLD = {
    "the wait removed": (2, "aten.gelu.default reads %rows.dispatch.started, which is under way until comm.wait"),
    "read before the wait": (2, "aten.gelu.default reads %rows.dispatch.started, which is under way until comm.wait"),
    "never waited for": (0, "%rows.dispatch.started is started, and no comm.wait waits for it"),
    "waited for twice": (3, "%rows.dispatch.started is waited for by %rows.dispatch already"),
    "not started": (2, "%rows.dispatch.started was not started"),
    "another axis": (2, "'dp' is no axis of the mesh"),
    "another layout": (2, "%rows.dispatch is not of the type and in the layout of %rows.dispatch.started"),
    "leaves the layer": (0, "%rows.dispatch.started leaves the layer while it is under way"),
    "a flag that says no": (0, "started is true, or not written"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_texts_that_break_a_wait_are_refused_at_the_line(edit: str) -> None:
    text, (index, told) = EXAMPLE, TOLD[edit]
    for old, new in zip(EDITS[edit][::2], EDITS[edit][1::2], strict=True):
        assert text.count(old) == 1
        text = text.replace(old, new)
    assert any(at == index and told in message for at, message in broken(text))
