"""What is found once for many strategies and layers is what each of them has by itself."""

from __future__ import annotations

import pytest

from galvatron.costs.sharded import ShardedCostModel
from galvatron.ir.cluster import Cluster
from galvatron.ir.strategy import ROLE_NAMES, Strategy
from galvatron.passes.planning.enumerate_strategies import EnumerateStrategies
from tests.parity.harness import costed

DEVICES, MICRO_BATCH = 4, 8
LEAVES = EnumerateStrategies(
    roles=ROLE_NAMES[:5], zero=(0, 1, 2, 3), recompute=("none", "selective", "full"), heuristics=False
).leaves_of(DEVICES)


def model(name: str) -> ShardedCostModel:
    return ShardedCostModel(costed(name)[0], Cluster.parse("a100-80g:2x2"))


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", ["llama", "shared"])
def test_layers_cost_what_they_do_in_a_model_that_has_seen_no_other(name: str) -> None:
    many = model(name)
    indices, ties = range(len(many.layers)), tuple((tie, None) for tie in many.tied())
    costs = {
        (index, strategy): many.layer(index, strategy, MICRO_BATCH, ties) for strategy in LEAVES for index in indices
    }
    for number, strategy in enumerate(LEAVES[::11]):
        index = indices[number % len(indices)]
        assert model(name).layer(index, strategy, MICRO_BATCH, ties) == costs[index, strategy]


@pytest.mark.slow
def test_conversions_cost_what_they_do_in_a_model_that_has_seen_no_other() -> None:
    many = model("llama")
    meshes = [Strategy(axes) for axes in dict.fromkeys(strategy.axes for strategy in LEAVES)]
    pairs = [(before, after) for before in meshes for after in meshes]
    seconds = [many.conversion_s(1, before, after, MICRO_BATCH) for before, after in pairs]
    for number, (before, after) in list(enumerate(pairs))[::17]:
        assert model("llama").conversion_s(1, before, after, MICRO_BATCH) == seconds[number]
