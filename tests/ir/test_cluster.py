"""Clusters: text, groups of ranks, rates."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from galvatron.errors import ClusterError, ParseError
from galvatron.ir.cluster import Cluster
from galvatron.ir.device import Device
from galvatron.ir.network import Level, MeasuredCollective
from galvatron.ir.networks import NETWORKS
from galvatron.ir.presets import PRESETS


def two_level(nodes: int = 2, devices: int = 8) -> Cluster:
    levels = (Level("node", devices, 100e9, 1e-6), Level("network", nodes, 10e9, 5e-6))
    return Cluster("toy", Device("toy", 10**9, (("f32", 1e12),), 1e11), levels)


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_presets_round_trip(preset: str) -> None:
    cluster = Cluster.parse(f"{preset}:2x8")
    assert str(cluster) == f"{preset}:2x8"
    assert Cluster.parse(str(cluster)) == cluster
    assert Cluster.from_json(cluster.to_json()) == cluster
    assert cluster.world_size == 16
    assert 0 < cluster.default_budget_bytes < cluster.device.memory_bytes
    assert PRESETS[preset].source and NETWORKS[preset].source
    cluster.check()


def test_every_preset_has_a_network() -> None:
    assert PRESETS.keys() == NETWORKS.keys()


def test_memory_is_what_the_driver_gives() -> None:
    """A card of 80 GB has 79.1 to 79.3 GiB, of which a GiB is gone before the first tensor."""
    for name in ("a100-80g", "h100-80g"):
        cluster = Cluster.parse(f"{name}:1x8")
        assert 79.1 * 2**30 < cluster.device.memory_bytes < 79.3 * 2**30
        assert 73 * 2**30 < cluster.default_budget_bytes < 73.5 * 2**30


def test_a_type_that_a_card_does_not_compute_is_slow() -> None:
    assert (
        Cluster.parse("v100-32g:1x8").device.flop_per_s("bf16")
        < 15e12
        < Cluster.parse("v100-32g:1x8").device.flop_per_s("f16")
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a100-80gb:1x8", "unknown device preset 'a100-80gb'; did you mean 'a100-80g'"),
        ("a100-80g", "not of the form 'preset:NODESxDEVICES', such as 'a100-80g:2x8'$"),
        ("a100-80", "such as 'a100-80g:2x8'; did you mean 'a100-80g'"),
        ("a100-80g:8", "not of the form"),
        ("a100-80g:0x8", "at least one node"),
        ("", "not of the form"),
    ],
)
def test_bad_text(text: str, message: str) -> None:
    with pytest.raises(ClusterError, match=message):
        Cluster.parse(text)


def test_bad_json() -> None:
    with pytest.raises(ParseError, match="line 2, column 1"):
        Cluster.from_json('{"name": "x",\n')
    fields = json.loads(two_level().to_json())
    for key in ("name", "device", "levels"):
        with pytest.raises(ClusterError):
            Cluster.from_json(json.dumps({k: v for k, v in fields.items() if k != key}))
    with pytest.raises(ClusterError):
        Cluster.from_json(json.dumps({**fields, "racks": 3}))
    with pytest.raises(ClusterError, match="cluster level field 'parts' must be a whole number"):
        Cluster.from_json(json.dumps({**fields, "levels": [{**fields["levels"][0], "parts": 1.5}]}))
    with pytest.raises(ClusterError, match="from 1 to 8 levels, not 0"):
        Cluster.from_json(json.dumps({**fields, "levels": []}))
    with pytest.raises(ClusterError, match="level 'node' has only one of quick_bytes_per_s and quick_step_s"):
        Cluster.from_json(json.dumps({**fields, "levels": [{**fields["levels"][0], "quick_step_s": 0.0}]}))
    with pytest.raises(ClusterError):
        Cluster.from_json("[]")


@given(
    st.text(min_size=1),
    st.floats(1, 1e18),
    st.floats(0, 1, exclude_min=True),
    st.integers(1, 2**50),
    st.lists(st.tuples(st.sampled_from(["f32", "bf16"]), st.floats(1, 1e16)), min_size=1),
)
def test_json_loses_nothing(
    name: str, rate: float, latency: float, memory: int, rates: list[tuple[str, float]]
) -> None:
    levels = (Level("node", 4, rate, latency, 2, latency, latency, rate, latency), Level("network", 1, 1.0, 0.0))
    measured = MeasuredCollective("all_reduce", 2, 1, ((1.0, latency), (rate + 1, latency + 1)), rate)
    sharing = ((1.0, 0.5), (4.0, 1.0))
    cluster = Cluster(name, Device(name, memory, tuple(rates), rate, latency), levels, (measured,), sharing)
    assert Cluster.from_json(cluster.to_json()) == cluster


def test_a_group_reaches_the_level_that_its_span_does() -> None:
    cluster = two_level()
    assert [cluster.level_of(*group) for group in ((8, 1), (2, 4), (16, 1), (2, 8), (4, 4))] == [0, 0, 1, 1, 1]
    assert cluster.level_of(3, 1) == 1  # blocks of three do not tile a node of eight
    assert two_level(nodes=1).level_of(4, 2) == 0
    assert Cluster.parse("gb200:2x18x4").level_of(8, 1) == 1


def test_a_group_slows_down_where_links_do() -> None:
    assert two_level().slows_down(16, 1) and not two_level().slows_down(8, 1)
    rack = Cluster.parse("gb200:2x18x4")
    assert rack.slows_down(2, 72) and not rack.slows_down(72, 1)


@pytest.mark.parametrize(
    ("text", "levels"),
    [
        ("a100-80g:2x8", [("node", 8), ("network", 2)]),
        ("a100-80g:1x8", [("node", 8)]),
        ("a100-80g:2x1", [("node", 1), ("network", 2)]),
        ("a100-80g-pcie:2x8", [("pair", 2), ("node", 4), ("network", 2)]),
        ("a100-80g-pcie:1x2", [("pair", 2)]),
        ("a100-80g-pcie:2x3", [("node", 3), ("network", 2)]),
        ("gb200:18x4", [("node", 4), ("rack", 18)]),
        ("gb200:2x18x4", [("node", 4), ("rack", 18), ("network", 2)]),
    ],
)
def test_sizes_are_those_of_levels(text: str, levels: list[tuple[str, int]]) -> None:
    assert [(level.name, level.parts) for level in Cluster.parse(text).levels] == levels


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a100-80g:2x2x8", "'a100-80g' has 2 levels: NODESxDEVICES"),
        ("gb200:36x4", "a rack joins at most 18 parts, not 36; write RACKSxNODESxDEVICES"),
    ],
)
def test_sizes_that_a_preset_does_not_have(text: str, message: str) -> None:
    with pytest.raises(ClusterError, match=message):
        Cluster.parse(text)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"name": "allreduce"}, "did you mean 'all_reduce'"),
        ({"size": 1}, "a group has at least two ranks"),
        ({"points": ()}, "has no points"),
        ({"points": ((0.0, 1.0),)}, "not positive"),
        ({"points": ((1.0, 1.0), (1.0, 2.0))}, "sizes must rise"),
        ({"points": ((1.0, 1.0), (2.0, 0.5))}, "seconds must not fall"),
        ({"beyond_bytes_per_s": 0.0}, "'beyond_bytes_per_s' must be positive"),
    ],
)
def test_what_was_measured_is_checked(changed: dict[str, object], message: str) -> None:
    measured = dataclasses.replace(MeasuredCollective("all_reduce", 2, 1, ((1e3, 1e-5), (1e6, 1e-4))), **changed)
    cluster = dataclasses.replace(two_level(), collectives=(measured,))
    with pytest.raises(ClusterError, match=message):
        Cluster.from_json(cluster.to_json())


def test_a_type_without_a_rate_runs_at_the_slowest() -> None:
    device = Device("d", 1, (("bf16", 4.0), ("f32", 2.0)), 1.0)
    assert device.flop_per_s("bf16") == 4.0
    assert device.flop_per_s("c64") == 2.0
