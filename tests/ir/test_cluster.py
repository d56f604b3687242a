"""Clusters: text, groups of ranks, rates."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from galvatron.errors import ClusterError, ParseError
from galvatron.ir.cluster import Cluster, Link
from galvatron.ir.device import Device
from galvatron.ir.presets import PRESETS


def two_level(nodes: int = 2, devices: int = 8) -> Cluster:
    return Cluster(
        "toy", Device("toy", 10**9, (("f32", 1e12),), 1e11), nodes, devices, Link(100e9, 1e-6), Link(10e9, 5e-6)
    )


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_presets_round_trip(preset: str) -> None:
    cluster = Cluster.parse(f"{preset}:2x8")
    assert str(cluster) == f"{preset}:2x8"
    assert Cluster.parse(str(cluster)) == cluster
    assert Cluster.from_json(cluster.to_json()) == cluster
    assert cluster.world_size == 16
    assert 0 < cluster.default_budget_bytes < cluster.device.memory_bytes
    assert PRESETS[preset].source


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
    for key in fields:
        with pytest.raises(ClusterError):
            Cluster.from_json(json.dumps({k: v for k, v in fields.items() if k != key}))
    with pytest.raises(ClusterError):
        Cluster.from_json(json.dumps({**fields, "racks": 3}))
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
    cluster = Cluster(
        name, Device(name, memory, tuple(rates), rate, latency), 1, 4, Link(rate, latency), Link(1.0, 0.0)
    )
    assert Cluster.from_json(cluster.to_json()) == cluster


def test_a_group_crosses_nodes_when_its_span_does() -> None:
    cluster = two_level()
    assert not cluster.crosses_nodes(8, 1) and not cluster.crosses_nodes(2, 4)
    assert cluster.crosses_nodes(16, 1) and cluster.crosses_nodes(2, 8) and cluster.crosses_nodes(4, 4)
    assert cluster.crosses_nodes(3, 1)  # blocks of three do not tile a node of eight
    assert not two_level(nodes=1).crosses_nodes(3, 1)


def test_a_type_without_a_rate_runs_at_the_slowest() -> None:
    device = Device("d", 1, (("bf16", 4.0), ("f32", 2.0)), 1.0)
    assert device.flop_per_s("bf16") == 4.0
    assert device.flop_per_s("c64") == 2.0
