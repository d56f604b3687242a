"""What a conversion costs, op by op, against the class that does it, profiled as a whole."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial

import pytest

from galvatron.costs.conversions import Conversions
from galvatron.costs.events import collectives_s, kernels_s
from galvatron.costs.profile import profile_graph
from galvatron.ir.cluster import Cluster
from galvatron.ir.graph import Value
from galvatron.ir.layout import BROADCAST, PARTIAL, REPLICATE, Placement, Shard, local_shape
from galvatron.ir.strategy import ROLE_NAMES, Strategy
from galvatron.ir.types import LOCAL_BATCH, TensorType
from galvatron.machine import Machine
from galvatron.partition import Crossing, OnMesh
from galvatron.passes.planning.enumerate_strategies import EnumerateStrategies
from tests.marks import some_slow

DEVICES, BATCH = 8, 16
STREAM = {"dp": Shard(0), "tp": REPLICATE, "tp+sp": Shard(1), "ulysses": Shard(1), "cp": Shard(1, folded=True)}
OTHERS = {"dp": Shard(0), "tp": BROADCAST, "tp+sp": PARTIAL, "ulysses": Shard(2), "cp": BROADCAST}
WAYS = [("a100-80g:2x4", True), ("cpu:1x8", True), ("cpu:1x8", False)]
"""A cluster, and whether what is converted has a gradient."""
LEAVES = EnumerateStrategies(roles=ROLE_NAMES[:5], heuristics=False).leaves_of(DEVICES)[::5]


def placed(strategy: Strategy, placements: Mapping[str, Placement]) -> OnMesh:
    """A slice of `(samples, 64, 48)` under a strategy."""
    layout = tuple(placements[role] for role in strategy.roles)
    shape = local_shape((strategy.degree("dp") * LOCAL_BATCH, 64, 48), layout, strategy.mesh)
    return Value("x", TensorType("bf16", shape), layout), strategy.mesh


@pytest.mark.parametrize(
    ("cluster", "differentiable", "placements", "leaves"),
    some_slow(
        [("a100-80g:2x4", True, OTHERS, LEAVES[::4])],
        [(*way, where, LEAVES) for way in WAYS for where in (STREAM, OTHERS)],
    ),
)
def test_ops_take_together_what_they_take_one_by_one(
    cluster: str, differentiable: bool, placements: Mapping[str, Placement], leaves: Sequence[Strategy]
) -> None:
    machine = Machine(Cluster.parse(cluster))
    profiled = partial(profile_graph, kind=machine.cluster.device.kind)
    conversions, found = Conversions(profiled, machine), 0
    with_gradient = frozenset("x") if differentiable else frozenset[str]()
    for before in leaves:
        for after in leaves:
            source, target = placed(before, placements), placed(after, placements)
            places = conversions.place(*source), conversions.place(*target)
            seconds = conversions.seconds(*places, BATCH, differentiable=differentiable)
            crossing = Crossing.between(source, target, differentiable=differentiable)
            if crossing is None:
                assert seconds == 0
                continue
            cls = crossing.cls("x")
            whole = profiled(cls.graph, cls.mesh, with_gradient)
            events, share = (*whole.forward, *whole.backward), BATCH / crossing.shares
            assert seconds == kernels_s(events, machine, share) + collectives_s(events, machine, share)
            found += math.isfinite(seconds)
    assert found > len(leaves)
