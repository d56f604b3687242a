"""Mesh axes that were solved for other strategies: what is found so is what is found of a strategy by itself."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from galvatron.errors import GalvatronError
from galvatron.ir.cluster import Cluster
from galvatron.ir.network import Level
from galvatron.ir.plan import Ties
from galvatron.ir.program import Program
from galvatron.ir.strategy import Strategy
from galvatron.partition import Partitioner
from galvatron.partition.axes import SolvedAxis
from galvatron.passes.frontend.cluster_layers import ClusterLayers
from galvatron.passes.frontend.normalize import Normalize
from galvatron.passes.planning.enumerate_strategies import EnumerateStrategies, divisors
from tests.marks import some_slow
from tests.models import ResidualNet, captured, shared

DEVICES, SAMPLES = 8, 16
SPACE = EnumerateStrategies(zero=(0,), recompute=("none",), heuristics=False)
STRATEGIES = [strategy for devices in divisors(DEVICES) for strategy in SPACE.leaves_of(devices)]
CLUSTERS = (
    # The models are tiny: only without latency do they weigh bytes against work like large ones.
    replace(Cluster.parse("a100-80g:1x8"), levels=(Level("node", DEVICES, 250e9, 0.0),)),
    Cluster.parse("a100-80g:2x4"),
)
MODELS = ("llama", "gpt2", "t5", "mixtral", "images")


def images(size: int, seed: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(size, 3, 16, 16, generator=generator, dtype=torch.float64)
    return {"images": pixels, "y": torch.randint(0, 8, (size,), generator=generator)}


@cache
def program(model: str) -> Program:
    if model == "images":
        found = captured("a residual net", ResidualNet().double(), images).program
    else:
        dropout = {"resid_pdrop": 0.1, "embd_pdrop": 0.1} if model == "gpt2" else {}
        found = shared(model, **dropout).captured.program
    return replace(ClusterLayers().run(Normalize().run(found)), batch_size=SAMPLES)


@cache
def together(model: str, cluster: Cluster) -> Partitioner:
    """One for all strategies that a test has had so far."""
    return Partitioner(program(model), cluster)


def sharded(partitioner: Partitioner, cls: str, strategy: Strategy, *, whole: bool) -> object:
    ties: Ties = tuple((tie.name, None if whole else strategy.keeping) for tie in partitioner.ties)
    try:
        found = partitioner.sharded(cls, strategy, ties)
    except GalvatronError as error:
        return str(error)
    return found.local, found.decisions


def check(model: str, cluster: Cluster, strategy: Strategy, *, whole: bool) -> None:
    alone = Partitioner(program(model), cluster)
    for cls in program(model).classes:
        found, expected = (sharded(each, cls.name, strategy, whole=whole) for each in (together(model, cluster), alone))
        assert found == expected, (cls.name, str(strategy))


@pytest.mark.parametrize("model", some_slow(["llama"], MODELS))
@settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    strategies=st.lists(st.sampled_from(STRATEGIES), min_size=2, max_size=3, unique=True),
    cluster=st.sampled_from(CLUSTERS),
    whole=st.booleans(),
)
def test_a_strategy_is_sharded_as_by_itself(
    model: str, strategies: list[Strategy], cluster: Cluster, whole: bool
) -> None:
    for strategy in strategies:
        check(model, cluster, strategy, whole=whole)


@pytest.mark.slow
@pytest.mark.parametrize("cluster", CLUSTERS, ids=["one-node", "two-nodes"])
@pytest.mark.parametrize("model", MODELS)
def test_every_strategy_is_sharded_as_by_itself(model: str, cluster: Cluster) -> None:
    for strategy in STRATEGIES:
        check(model, cluster, strategy, whole=False)


def axes(partitioner: Partitioner, strategy: str) -> tuple[SolvedAxis, ...]:
    """What was found of the axes of a block."""
    block = max(partitioner.program.classes, key=lambda cls: len(cls.graph.ops))
    return partitioner.sharded(block.name, Strategy.parse(strategy), ()).axes


def test_axes_do_not_depend_on_the_order_of_those_around_them() -> None:
    partitioner = Partitioner(program("llama"), CLUSTERS[0])
    first, second = (axes(partitioner, text) for text in ("dp2-tp2-cp2", "tp2-dp2-cp2"))
    assert first[2] is second[2]


def test_links_of_another_speed_are_another_axis() -> None:
    partitioner = Partitioner(program("llama"), CLUSTERS[1])
    within, beside, across = (axes(partitioner, text)[0] for text in ("tp2", "tp2-dp2", "tp2-dp4"))
    assert within is beside and within is not across
