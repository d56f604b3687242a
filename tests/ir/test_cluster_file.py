"""Clusters that people write: what a file may say, and what it is told where no machine is like that."""

from __future__ import annotations

from pathlib import Path

import pytest

from galvatron.errors import ClusterError, ParseError
from galvatron.ir.cluster import Cluster

OWN = """
[device]
memory_bytes = "16GiB"
memory_bytes_per_s = "900GB/s"
matmul_flop_per_s = { bf16 = "100TFLOP/s", f32 = 1.5e13 }

[level.node]
parts = 4
bytes_per_s = "200Gbit/s"
latency_s = "5us"
"""


@pytest.fixture
def written(tmp_path: Path):
    def write(text: str) -> str:
        path = tmp_path / "ours.toml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def test_all_figures(written) -> None:
    cluster = Cluster.parse(written(OWN))
    assert (cluster.name, cluster.world_size) == ("ours", 4)
    assert cluster.device.memory_bytes == 16 * 2**30
    assert cluster.device.matmul_flop_per_s == (("bf16", 1e14), ("f32", 1.5e13))
    assert cluster.levels[0].bytes_per_s == pytest.approx(25e9) and cluster.levels[0].latency_s == pytest.approx(5e-6)
    assert Cluster.from_json(cluster.to_json()) == cluster


def test_a_preset_with_figures_of_ones_own(written) -> None:
    text = """
name = "ours"
preset = "a100-80g:4x8"
[device]
memory_bytes = "78GiB"
matmul_flop_per_s.bf16 = "240TFLOP/s"
[level.network]
cards = 4
bytes_per_s = "95Gbit/s"
[level.rooms]
parts = 2
bytes_per_s = "1GB/s"
latency_s = "100us"
"""
    cluster, preset = Cluster.load(written(text)), Cluster.parse("a100-80g:4x8")
    node, network, rooms = cluster.levels
    assert node == preset.levels[0] and cluster.world_size == 64
    assert (network.parts, network.cards, network.bytes_per_s) == (4, 4, 95e9 / 8)
    assert network.latency_s == preset.levels[1].latency_s and rooms.name == "rooms"
    assert cluster.device.flop_per_s("bf16") == 240e12 and cluster.device.memory_bytes == 78 * 2**30
    assert cluster.device.flop_per_s("f32") == preset.device.flop_per_s("f32")
    assert cluster.device.products == preset.device.products


def test_other_figures_than_those_of_a_preset_are_not_what_was_measured_on_it(written) -> None:
    own = Cluster.load(written('preset = "h100-80g:1x8"\n[device]\nmemory_bytes = 9e10\n')).device
    assert own.curves == "h100-80g"
    own = Cluster.load(written('preset = "h100-80g:1x8"\n[device]\nmemory_bytes_per_s = 2e12\n')).device
    assert not own.curves and own.memory_bytes_per_s == 2e12


def test_a_preset_of_the_device_alone(written) -> None:
    cluster = Cluster.load(written('preset = "l4"\n[level.node]\nparts = 2\nbytes_per_s = 4e9\nlatency_s = 2e-5\n'))
    assert cluster.device == Cluster.parse("l4:1x2").device
    assert [(level.name, level.parts) for level in cluster.levels] == [("node", 2)]


PRESET = 'preset = "a100-80g:2x8"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (PRESET + "[devices]", "unknown key 'devices'; did you mean 'device'"),
        (PRESET + "device = 3", "'device' must be a table, not 3"),
        (PRESET + "[level]\nnode = 3", "level node must be a table, not 3"),
        (PRESET + "[device]\nmemory = 3", "unknown key 'memory' of device; did you mean 'memory_bytes'"),
        (PRESET + "[device]\nmemory_bytes = 80", "device memory_bytes is 80 bytes, .* a unit like '80GiB'"),
        (PRESET + "[device]\nmemory_bytes = 0", "device memory_bytes is 0 bytes, which no machine has"),
        (PRESET + "[device]\nmemory_bytes = '90GiB'", "but that of a100-80g is 8.5094e.10, by what is published"),
        (PRESET + "[device]\nmemory_bytes_per_s = 2000", "write it in bytes/s, or with a unit like '2TB/s'"),
        (PRESET + "[device]\nmatmul_flop_per_s = { bf16 = 312 }", "device matmul_flop_per_s.bf16 is 312 FLOP/s"),
        (
            PRESET + "[device]\nmatmul_flop_per_s = { bf16 = 6e14 }",
            "that of a100-80g is 3.12e.14, by what is published",
        ),
        (PRESET + "[device]\nmatmul_flop_per_s = { bf61 = 3e14 }", "unknown element type 'bf61'"),
        (PRESET + "[device]\nmatmul_flop_per_s = 3e14", "must be a list of names with numbers"),
        (
            PRESET + "[device]\nreserved_bytes = '100GiB'",
            "'reserved_bytes' is 107374182400, and 'memory_bytes' is 85094039552",
        ),
        (PRESET + "[level.network]\nlatency_s = 5", "level network latency_s is 5 s, .* with a unit like '5us'"),
        (PRESET + "[level.network]\nbytes_per_s = 25", "level network bytes_per_s is 25 bytes/s"),
        (
            PRESET + "[level.network]\nbytes_per_s = '25Gb/s'",
            "'Gb/s' is no unit of bytes/s; did you mean 'Gbit/s' or 'GB/s'",
        ),
        (PRESET + "[level.network]\nbytes_per_s = '25'", "not a number with a unit"),
        (PRESET + "[level.network]\ncards = 1.5", "level network field 'cards' must be a whole number"),
        (PRESET + "[level.network]\nname = 'net'", r"has its name from its table, \[level.network\]"),
        (PRESET + "[level.rack]\nparts = 2", "level rack field 'bytes_per_s' is missing"),
        (PRESET + "[level.node]\nparts = 0", "'parts' must be positive"),
        ('preset = "a100-80:2x8"', "did you mean 'a100-80g'"),
        ("preset = 3", "'preset' must be text"),
        (PRESET + "name = 3", "'name' must be text"),
        (OWN.replace("memory_bytes_per_s", "memory_bytes_pers"), "did you mean 'memory_bytes_per_s'"),
        (OWN.partition("[level")[0], r"needs a table such as \[level.node\]"),
        ("[level.node]\nparts = 2\nbytes_per_s = 1e9\nlatency_s = 0", "device field 'memory_bytes' is missing"),
    ],
)
def test_what_is_refused(written, text: str, message: str) -> None:
    with pytest.raises(ClusterError, match=message):
        Cluster.load(written(text))


def test_what_is_no_file_or_no_toml(written, tmp_path: Path) -> None:
    with pytest.raises(ParseError, match=r"ours.toml is not valid TOML: Invalid value"):
        Cluster.parse(written("preset = "))
    with pytest.raises(ParseError, match="not valid TOML"):
        Cluster.parse(written("a = " + "[" * 100_000))
    with pytest.raises(ClusterError, match="cannot read .*none.toml"):
        Cluster.parse(str(tmp_path / "none.toml"))
