"""Rows that are sent in chunks: what a graph becomes."""

from __future__ import annotations

import pytest

from galvatron.ir.chunks import in_chunks
from galvatron.ir.graph import Graph
from galvatron.ir.layout import Axis
from galvatron.ir.overlap import CHUNKS, Arrangement, Window, arranged, is_arranged
from galvatron.ir.text import parse_graph, print_graph
from galvatron.ir.types import LOCAL_BATCH
from galvatron.ir.verify.graphs import Scope, collectives, result_types
from galvatron.ir.verify.started import started_collectives

EXPERTS = """
graph {
  input %x : f32[3*b, 8] (S(0))
  input %ids : i64[3*b] (S(0))
  input %gates : f32[3*b, 1] (S(0))
  state %bias : f32[8] (R')
  %there = comm.dispatch(%x, axis="ep", dim=0, outer=1, by=%ids, size=4) : f32[3*b, 8] (S(0, by=%ids))
  %add = aten.add.Tensor(%there, %bias) : f32[3*b, 8] (S(0, by=%ids))
  %tanh = aten.tanh.default(%gates) : f32[3*b, 1] (S(0))
  %gelu = aten.gelu.default(%add) : f32[3*b, 8] (S(0, by=%ids))
  %back = comm.combine(%gelu, axis="ep", dim=0, outer=1, by=%ids, size=4) : f32[3*b, 8] (S(0))
  %mul = aten.mul.Tensor(%back, %tanh) : f32[3*b, 8] (S(0))
  return %mul
}
"""
CUT = """
graph {
  input %x : f32[3*b, 8] (S(0))
  input %ids : i64[3*b] (S(0))
  input %gates : f32[3*b, 1] (S(0))
  state %bias : f32[8] (R')
  %ids.blocks = aten.reshape.default(%ids, [b, 3]) : i64[b, 3] (S(0))
  %ids.blocks.0, %ids.blocks.1 = aten.split_with_sizes.default(%ids.blocks, [2, 1], 1) \
      : i64[b, 2] (S(0)), i64[b, 1] (S(0))
  %ids.0 = aten.reshape.default(%ids.blocks.0, [2*b]) : i64[2*b] (S(0))
  %ids.1 = aten.reshape.default(%ids.blocks.1, [b]) : i64[b] (S(0))
  %x.blocks = aten.reshape.default(%x, [b, 3, 8]) : f32[b, 3, 8] (S(0))
  %x.blocks.0, %x.blocks.1 = aten.split_with_sizes.default(%x.blocks, [2, 1], 1) \
      : f32[b, 2, 8] (S(0)), f32[b, 1, 8] (S(0))
  %x.0 = aten.reshape.default(%x.blocks.0, [2*b, 8]) : f32[2*b, 8] (S(0))
  %x.1 = aten.reshape.default(%x.blocks.1, [b, 8]) : f32[b, 8] (S(0))
  %there.0 = comm.dispatch(%x.0, axis="ep", dim=0, outer=1, by=%ids.0, size=4, also=[%ids.1]) \
      : f32[2*b, 8] (S(0, by=%ids.0))
  %there.1 = comm.dispatch(%x.1, axis="ep", dim=0, outer=1, by=%ids.1, size=4) : f32[b, 8] (S(0, by=%ids.1))
  %tanh = aten.tanh.default(%gates) : f32[3*b, 1] (S(0))
  %add.0 = aten.add.Tensor(%there.0, %bias) : f32[2*b, 8] (S(0, by=%ids.0))
  %gelu.0 = aten.gelu.default(%add.0) : f32[2*b, 8] (S(0, by=%ids.0))
  %back.0 = comm.combine(%gelu.0, axis="ep", dim=0, outer=1, by=%ids.0, size=4) : f32[2*b, 8] (S(0))
  %add.1 = aten.add.Tensor(%there.1, %bias) : f32[b, 8] (S(0, by=%ids.1))
  %gelu.1 = aten.gelu.default(%add.1) : f32[b, 8] (S(0, by=%ids.1))
  %back.1 = comm.combine(%gelu.1, axis="ep", dim=0, outer=1, by=%ids.1, size=4) : f32[b, 8] (S(0))
  %back.blocks.0 = aten.reshape.default(%back.0, [b, 2, 8]) : f32[b, 2, 8] (S(0))
  %back.blocks.1 = aten.reshape.default(%back.1, [b, 1, 8]) : f32[b, 1, 8] (S(0))
  %back.blocks = aten.cat.default([%back.blocks.0, %back.blocks.1], 1) : f32[b, 3, 8] (S(0))
  %back = aten.reshape.default(%back.blocks, [3*b, 8]) : f32[3*b, 8] (S(0))
  %mul = aten.mul.Tensor(%back, %tanh) : f32[3*b, 8] (S(0))
  return %mul
}
"""
"""Chunk by chunk what is done to rows where they went, and the rest where it stood."""


def broken(graph: Graph) -> list[str]:
    scope = Scope(graph, "experts", frozenset({LOCAL_BATCH}), (Axis("ep", 2, 1),))
    return [told for rule in (collectives, started_collectives, result_types) for _, told in rule(scope)]


def test_chunks_are_computed_one_behind_the_other() -> None:
    found = in_chunks(parse_graph(EXPERTS), 2)
    assert found == parse_graph(CUT)
    assert parse_graph(print_graph(found)) == found
    assert not broken(found)


def test_one_chunk_is_computed_while_others_are_on_their_way() -> None:
    windows = Window("there.1", ("add.0", "gelu.0")), Window("back.0", ("add.1", "gelu.1"))
    found = arranged(parse_graph(EXPERTS), Arrangement(2, windows))
    order = [op.results[0].name for op in found.ops]
    sent = ["there.0", "there.1.started", "tanh", "add.0", "gelu.0", "there.1"]
    assert order[order.index("there.0") : order.index("back.1")] == [
        *sent, "back.0.started", "add.1", "gelu.1", "back.0",
    ]  # fmt: skip
    assert not broken(found)
    assert is_arranged(parse_graph(EXPERTS), found)
    assert not is_arranged(parse_graph(EXPERTS.replace("gelu.default", "relu.default")), found)


def test_rows_of_which_samples_have_too_few_are_sent_whole() -> None:
    graph = parse_graph(EXPERTS)
    assert [in_chunks(graph, count) is graph for count in CHUNKS] == [True, False, True]


@pytest.mark.parametrize(
    ("also", "told"),
    [
        ("also=[%gates]", "%gates must be whole numbers, one for each row"),
        ("also=%ids.1", "also must be a list of values"),
        ("also=[%ids.1, 2]", "also must be a list of values"),
        ("also=[%ids.blocks.1]", "%ids.blocks.1 must be whole numbers, one for each row"),
    ],
)
def test_ranks_tell_each_other_of_rows_alone(also: str, told: str) -> None:
    assert told in "".join(broken(parse_graph(CUT.replace("also=[%ids.1]", also))))
