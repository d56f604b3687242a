"""Factors: cuts travel from the op that makes them to every value that they reach."""

from __future__ import annotations

from typing import Any

from galvatron.ir.factors import FactorTable
from galvatron.ir.graph import Graph, Op, Ref, Value
from galvatron.ir.layout import BROADCAST, PARTIAL, REPLICATE
from galvatron.ir.types import BATCH, Dim, TensorType
from galvatron.partition.modes import Mode, Split
from tests.partition.offered import offered


def value(name: str, *shape: Dim) -> Value:
    return Value(name, TensorType("f32", shape))


def op(target: str, *args: Any, results: tuple[Value, ...]) -> Op:
    return Op(f"aten.{target}", args, (), results)


def fused_attention() -> Graph:
    """A fused projection to queries, keys and values of four heads of eight."""
    parts = tuple(value(name, BATCH, 6, 32) for name in "qkv")
    ops = (
        op("linear.default", Ref("x"), Ref("w"), Ref("bias"), results=(value("qkv", BATCH, 6, 96),)),
        op("split.Tensor", Ref("qkv"), 32, 2, results=parts),
        op("reshape.default", Ref("q"), (BATCH, 6, 4, 8), results=(value("heads", BATCH, 6, 4, 8),)),
        op("reshape.default", Ref("x"), (6 * BATCH, 16), results=(value("flat", 6 * BATCH, 16),)),
    )
    return Graph((value("x", BATCH, 6, 16),), (value("w", 96, 16), value("bias", 96)), ops, ("heads", "k", "v", "flat"))


def sizes(table: FactorTable, name: str, dim: int) -> list[Dim]:
    return [f.size for f in table.factors(name, dim)]


def test_heads_of_a_fused_projection_reach_its_weight_and_bias() -> None:
    table = FactorTable(fused_attention())
    for name, dim in (("w", 0), ("bias", 0), ("qkv", 2)):
        assert sizes(table, name, dim) == [3, 4, 8]
    for name in "qkv":
        assert sizes(table, name, 2) == [4, 8]


def test_the_batch_is_a_factor_of_its_own() -> None:
    table = FactorTable(fused_attention())
    assert sizes(table, "flat", 0) == [BATCH, 6]
    assert [(f.inner, f.size) for f in table.factors("flat", 0)] == [(6, BATCH), (1, 6)]


def test_an_op_is_sharded_along_the_same_factor_everywhere() -> None:
    table = FactorTable(fused_attention())
    heads = next(f for f in table.op_factors(0) if f.name == "n" and f.size == 4)
    assert [place and (place.dim, place.inner, place.size) for place in heads.operands] == [None, (0, 8, 4), (0, 8, 4)]
    assert [place and (place.dim, place.inner, place.size) for place in heads.results] == [(2, 8, 4)]


def test_the_parts_of_a_split_are_not_sharded() -> None:
    table = FactorTable(fused_attention())
    assert 3 not in [f.size for f in table.op_factors(1)]


def test_modes_of_a_linear_layer() -> None:
    graph = fused_attention()
    table, names = FactorTable(graph), frozenset(graph.values)
    modes = offered(graph, 0, table, 4, names)
    found = {(m.factor and (m.factor.name, m.factor.size), m.operands, m.results) for m in modes}
    heads, rows = Split(0, 8, 4), Split(1, 1, 16)
    assert (("n", 4), (BROADCAST, heads, heads), (Split(2, 8, 4),)) in found
    assert (("k", 16), (Split(2, 1, 16), rows, PARTIAL), (PARTIAL,)) in found
    assert (None, (PARTIAL, BROADCAST, PARTIAL), (PARTIAL,)) in found
    assert (None, (REPLICATE,) * 3, (REPLICATE,)) in found
    assert (None, (BROADCAST,) * 3, (BROADCAST,)) in found
    # Three parts and six positions do not divide by four ranks.
    assert not {m.factor.size for m in modes if m.factor} & {3, 6}


def test_without_a_gradient_the_two_replicated_placements_are_one() -> None:
    graph = fused_attention()
    modes = offered(graph, 0, FactorTable(graph), 2, frozenset())
    assert all(BROADCAST not in (*m.operands, *m.results) for m in modes)


def test_a_factor_that_other_axes_share_must_divide_by_all() -> None:
    graph = fused_attention()
    table = FactorTable(graph)
    (heads,) = (f for f in table.op_factors(0) if (f.name, f.size) == ("n", 4))

    def modes_on(ranks: int) -> tuple[Mode, ...]:
        return offered(graph, 0, table, ranks, frozenset(), {heads: 2})

    assert any(m.factor == heads for m in modes_on(2))
    assert not any(m.factor == heads for m in modes_on(4))
