"""More ranks than key heads: replicated groups on sub-axes, against Megatron's pattern and against one device."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from galvatron.ir.layout import BROADCAST, REPLICATE, Axis, Shard, joined_layout
from galvatron.ir.program import LayerClass
from galvatron.ir.strategy import Strategy
from galvatron.ir.types import simplify_dim
from tests.partition.test_partition import check_class, classes, partitioner

KEYS = ("self_attn.k_proj.weight", "self_attn.v_proj.weight")
PAIRS = (Axis("tp.0", 2, 2), Axis("tp.1", 2, 1))


def heads(query: int, key: int) -> dict[str, Any]:
    return {"num_attention_heads": query, "num_key_value_heads": key, "hidden_size": 8 * query}


UNEVEN = heads(12, 4) | {"intermediate_size": 50}


def block(strategy: str, **options: Any) -> LayerClass:
    """The sharded decoder block of a small Llama."""
    split = partitioner("llama", **options)
    (cls,) = {layer.cls for layer in split.program.layers if any("k_proj" in name for name in layer.state)}
    return split.shard(cls, Strategy.parse(strategy), ())


def kept(cls: LayerClass) -> dict[str, tuple[Any, ...]]:
    """The placements of the state, on as few axes as tell them."""
    return {v.name: joined_layout(v.layout or (), cls.mesh)[0] for v in cls.graph.state}


def collectives(cls: LayerClass) -> list[tuple[object, object]]:
    """The kind and the axis of every collective."""
    found = [(op.target.removeprefix("comm."), op.kwarg("axis")) for op in cls.graph.ops]
    return sorted(one for one, op in zip(found, cls.graph.ops, strict=True) if op.target.startswith("comm."))


def attention_heads(cls: LayerClass) -> list[object]:
    """How many heads of queries, keys and values a rank has as it attends; keys may be repeated for their queries."""
    (op,) = (op for op in cls.graph.ops if "attention" in op.target)
    return [simplify_dim(cls.graph.values[name].type.shape[1]) for name in op.operands[:3]]


MEGATRON = {
    "tp4": [("all_reduce", "tp")] * 2 + [("copy", "tp")] * 2,
    "tp4+sp": [("all_gather", "tp")] * 2 + [("reduce_scatter", "tp")] * 2,
}


@pytest.mark.one_in(2)
@pytest.mark.parametrize("strategy", MEGATRON)
def test_pairs_of_ranks_share_a_key_head(strategy: str) -> None:
    """Ranks 0 and 1 have the first key head whole, ranks 2 and 3 the second, and nothing of it is gathered."""
    cls = block(strategy, **heads(8, 2))
    assert cls.mesh == PAIRS
    layouts = kept(cls)
    assert all(layouts[name] == (Shard(0), BROADCAST) for name in KEYS)
    assert layouts["self_attn.q_proj.weight"] == layouts["mlp.up_proj.weight"] == (Shard(0),)
    assert layouts["self_attn.o_proj.weight"] == layouts["mlp.down_proj.weight"] == (Shard(1),)
    assert collectives(cls) == MEGATRON[strategy]
    assert attention_heads(cls) == [2, 2, 2]
    assert [v.type.shape[0] for v in cls.graph.state if v.name in KEYS] == [8, 8], "one head of width 8"


@pytest.mark.slow
@pytest.mark.parametrize("strategy", MEGATRON)
def test_one_key_head_is_whole_on_every_rank(strategy: str) -> None:
    cls = block(strategy, **heads(8, 1))
    assert cls.mesh == (Axis("tp", 4, 1),)
    assert all(kept(cls)[name] == (BROADCAST,) for name in KEYS)
    assert collectives(cls) == MEGATRON[strategy]


def test_the_axis_stays_one_where_every_matrix_is_shared_by_all() -> None:
    assert block("tp2", **heads(8, 2)).mesh == (Axis("tp", 2, 1),)
    split = partitioner("llama", **heads(8, 2))
    others = [split.shard(c.name, Strategy.parse("tp4"), ()) for c in classes("llama", **heads(8, 2))]
    assert sum(cls.mesh == PAIRS for cls in others) == 1, "embedding and head have no groups"


@pytest.mark.slow
def test_every_matrix_is_shared_as_far_as_it_divides() -> None:
    """Four key heads on six ranks: three ranks share two of them, each with one query head for either, and compute the
    same hidden units, which two divides but not three."""
    cls = block("tp6", **UNEVEN)
    assert cls.mesh == (Axis("tp.0", 2, 3), Axis("tp.1", 3, 1))
    layouts = kept(cls)
    assert all(layouts[name] == (Shard(0), BROADCAST) for name in KEYS)
    assert layouts["self_attn.q_proj.weight"] == (Shard(0), Shard(0, outer=4))
    assert layouts["mlp.up_proj.weight"] == (Shard(0), REPLICATE)
    assert collectives(cls) == [("all_reduce", "tp"), ("all_reduce", "tp.0"), ("copy", "tp"), ("copy", "tp.0")]


@pytest.mark.slow
def test_without_a_clean_grouping_every_rank_has_all_key_heads() -> None:
    """Two key heads on three ranks: a rank's query heads, one of either group, need both."""
    cls = block("tp3", **heads(6, 2))
    assert cls.mesh == (Axis("tp", 3, 1),)
    assert all(kept(cls)[name] == (BROADCAST,) for name in KEYS)
    assert collectives(cls) == MEGATRON["tp4"]


def test_sub_axes_take_part_in_other_meshes() -> None:
    assert block("tp4-dp2", **heads(8, 2)).mesh == (Axis("tp.0", 2, 4), Axis("tp.1", 2, 2), Axis("dp", 2, 1))
    assert block("dp2-tp8+sp", **heads(8, 2)).mesh == (Axis("dp", 2, 8), Axis("tp.0", 2, 4), Axis("tp.1", 4, 1))


@pytest.mark.one_in(6)
@pytest.mark.parametrize(
    ("options", "strategy"),
    [
        *((heads(8, 2), strategy) for strategy in ("tp4", "tp4+sp", "tp8", "tp4-dp2", "ulysses2-tp4")),
        *((heads(8, 1), strategy) for strategy in ("tp4", "tp4+sp")),
        *((heads(6, 2), strategy) for strategy in ("tp3", "tp4", "tp4+sp", "tp6")),
        *((UNEVEN, strategy) for strategy in ("tp4", "tp6")),
    ],
)
def test_blocks_compute_what_they_compute_whole(options: dict[str, Any], strategy: str) -> None:
    torch.manual_seed(0)
    split, parsed = partitioner("llama", **options), Strategy.parse(strategy)
    local = block(strategy, **options)
    differentiable = split.borders[local.base].differentiable
    check_class(split.program.class_of[local.base].graph, local, differentiable, parsed.degree("dp"))
