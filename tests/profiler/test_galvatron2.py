"""Profiles of Galvatron-2: what becomes of its files, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from galvatron.cli import app
from galvatron.errors import ClusterError, GalvatronError
from galvatron.ir import presets
from galvatron.ir.layout import Axis
from galvatron.machine.collectives import Collectives
from galvatron.profiler.clusters import cluster_in, cluster_of
from galvatron.profiler.galvatron2 import MEAN_BYTES, import_directory

REAL = Path("/work/shared/data/galvatron2")
RUN = CliRunner()
MIB = 2**20

REDUCED, SENT, TIMES = "allreduce_bandwidth_{}.json", "p2p_bandwidth_{}.json", "sp_time_{}.json"
NODE, NODES = "1nodes_4gpus_per_node", "2nodes_4gpus_per_node"
FILES: dict[str, dict[str, Any]] = {
    REDUCED.format(NODE): {
        "allreduce_size_4_consec_1": 150.0, "allreduce_size_2_consec_1": 140.0, "allreduce_size_2_consec_0": 145.0,
    },
    REDUCED.format(NODES): {
        "allreduce_size_8_consec_1": 40.0, "allreduce_size_4_consec_1": 151.0, "allreduce_size_4_consec_0": 19.0,
        "allreduce_size_2_consec_1": 141.0, "allreduce_size_2_consec_0": 12.0,
    },
    SENT.format(NODE): {"pp_size_2": 120.0, "pp_size_4": 110.0},
    SENT.format(NODES): {"pp_size_2": 12.0, "pp_size_4": 11.0, "pp_size_8": 12.0},
    TIMES.format(NODE): {
        **{f"allreduce_size_4_{n}MB_time": 0.05 + n * MIB * 1.5 / 150e9 * 1e3 for n in (1, 16, 128, 512)},
        **{f"all2all_size_4_{n}MB_time": 0.05 + n * MIB * 0.75 / 150e9 * 1e3 for n in (1, 16, 128, 512)},
    },
    "overlap_coefficient.json": {"overlap_coe": 1.2},
    "computation_profiling_bf16_net_all.json": {"layertype_0_bsz1_seq2048": 4.0},
    "notes.json": {},
}  # fmt: skip


def written(directory: Path, **changes: Any) -> Path:
    for name, members in {**FILES, **changes}.items():
        (directory / name).write_text(members if isinstance(members, str) else json.dumps(members))
    return directory


def seconds(cluster: Any, kind: str, nbytes: float, size: int, stride: int) -> float:
    return Collectives(cluster).seconds(kind, nbytes, Axis("x", size, stride))


def test_rates_and_times_become_links(tmp_path: Path) -> None:
    found = import_directory(written(tmp_path), "a100-80g")
    assert found.profile.name == "a100-80g:2x4" and found.profile.fact("overlap_slowdown") == 1.2
    cluster = cluster_of(found.profile)
    assert cluster.device == presets.device("a100-80g") and [level.parts for level in cluster.levels] == [4, 2]
    assert seconds(cluster, "all_reduce", 16 * MIB, 4, 1) == pytest.approx(0.05e-3 + 16 * MIB * 1.5 / 150e9)
    assert seconds(cluster, "all_to_all", 128 * MIB, 4, 1) == pytest.approx(0.05e-3 + 128 * MIB * 0.75 / 150e9)
    assert seconds(cluster, "all_gather", 512 * MIB, 4, 1) == pytest.approx(512 * MIB * 0.75 / 150e9, rel=0.05)
    assert seconds(cluster, "all_reduce", 512 * MIB, 8, 1) == pytest.approx(512 * MIB * 1.75 / 40e9, rel=0.05)
    assert seconds(cluster, "p2p", 512 * MIB, 2, 1) == pytest.approx(512 * MIB / 120e9, rel=0.05)


def test_groups_that_leave_a_node_share_its_cards(tmp_path: Path) -> None:
    """Each of four pairs was measured alone at 12 GB/s, but all devices of a node together send 40."""
    found = import_directory(written(tmp_path), "a100-80g").profile
    (pairs,) = (m for m in found.of("all_reduce") if m.is_among(2, 4))
    assert pairs.seconds == pytest.approx(MEAN_BYTES / 10e9)
    (fours,) = (m for m in found.of("all_reduce") if m.is_among(4, 2))
    assert fours.seconds == pytest.approx(MEAN_BYTES * 1.5 / 19e9)


def test_files_of_other_jobs_are_listed(tmp_path: Path) -> None:
    found = import_directory(written(tmp_path), "a100-80g", (1, 4))
    told = dict(found.left_out)
    assert found.profile.name == "a100-80g:1x4"
    assert told[REDUCED.format(NODES)] == "of 2x4 devices, not 1x4"
    assert "fingerprint" in told["computation_profiling_bf16_net_all.json"]
    assert told["notes.json"] == "no file of Galvatron-2 is called so"
    assert told["bandwidth of all-reduces of 4 devices, 1 apart"] == "there are times of the same groups by size"
    assert len(told) == 5


@settings(max_examples=50, deadline=None)
@given(st.floats(1, 300), st.floats(0.5, 50), st.integers(1, 2**34), st.integers(1, 2**34))
def test_prices_are_sensible(in_node: float, across: float, one: int, other: int) -> None:
    import tempfile

    rates = {
        "allreduce_size_8_consec_1": across, "allreduce_size_4_consec_1": in_node, "allreduce_size_4_consec_0": across,
        "allreduce_size_2_consec_1": in_node, "allreduce_size_2_consec_0": across,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / REDUCED.format(NODES)).write_text(json.dumps(rates))
        cluster = cluster_of(import_directory(name, "h100-80g").profile)
    less, more = sorted((one, other))
    for kind in ("all_reduce", "all_gather", "all_to_all", "p2p"):
        for shape in ((2, 1), (4, 1), (8, 1), (2, 2), (2, 4), (4, 2)):
            assert 0 < seconds(cluster, kind, less, *shape) <= seconds(cluster, kind, more, *shape) < 1e3


@pytest.mark.parametrize(
    "name, content, words",
    [
        (REDUCED.format(NODE), {"allreduce_size_4_consec_2": 1.0}, "'allreduce_size_4_consec_2' is not one of"),
        (REDUCED.format(NODE), {"allreduce_size_3_consec_1": 1.0}, "has groups of 3 of 4 devices"),
        (REDUCED.format(NODE), {"allreduce_size_4_consec_1": "fast"}, "is 'fast', which is not GB/s"),
        (REDUCED.format(NODE), {"allreduce_size_4_consec_1": 150e9}, "which is not GB/s from 0.001 to 10000"),
        (REDUCED.format(NODE), {"allreduce_size_4_consec_1": True}, "is True, which is not GB/s"),
        (REDUCED.format(NODE), "[1]", "must be a JSON object"),
        (REDUCED.format(NODE), "{", "not valid JSON"),
        (SENT.format(NODE), {"pp_size_0": 1.0}, "has groups of 0 of 4 devices"),
        (TIMES.format(NODE), {"allreduce_size_4_128MB_time": 1340.0}, "rates must be bus bandwidths in GB/s"),
        (TIMES.format(NODE), {"allreduce_size_4_0MB_time": 1.0}, "is of no size from 1 MB"),
        ("overlap_coefficient.json", {"overlap_coe": 0.2}, "is 0.2, which is not a slowdown from 1 to 100"),
        ("overlap_coefficient.json", {}, "must have 'overlap_coe'"),
    ],
)
def test_what_no_machine_does_is_refused(tmp_path: Path, name: str, content: Any, words: str) -> None:
    with pytest.raises(GalvatronError) as error:
        import_directory(written(tmp_path, **{name: content}), "a100-80g", (1, 4))
    assert words in str(error.value) and str(tmp_path) in str(error.value)


def test_what_is_asked_for_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="has no allreduce_bandwidth"):
        import_directory(tmp_path, "a100-80g")
    with pytest.raises(ClusterError, match="unknown device 'a100'"):
        import_directory(written(tmp_path), "a100")
    with pytest.raises(ClusterError, match="has no bandwidths of 4x4 devices; it has 1x4, 2x4"):
        import_directory(tmp_path, "a100-80g", (4, 4))
    with pytest.raises(ClusterError, match="is no directory"):
        import_directory(tmp_path / "none", "a100-80g")


def test_the_command_writes_a_cluster(tmp_path: Path) -> None:
    path = tmp_path / "ours" / "profile.json"
    arguments = ["profile", "import-galvatron2", str(written(tmp_path)), "--device", "a100-80g", "-o", str(path)]
    result = RUN.invoke(app, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == json.loads(path.read_text())
    assert "not taken: computation_profiling_bf16_net_all.json: times of" in result.stderr
    assert "measurements of a100-80g:2x4" in result.stderr
    assert cluster_in(path).world_size == 8
    shown = RUN.invoke(app, [*arguments, "--shape", "1x4"])
    assert shown.exit_code == 0 and "all_reduce" in shown.stdout
    wrong = RUN.invoke(app, [*arguments, "--shape", "four"])
    assert wrong.exit_code == 2 and "must be like 2x8" in wrong.stderr


@pytest.mark.skipif(not REAL.is_dir(), reason=f"needs {REAL}, which Galvatron-2 measured")
def test_a_real_one() -> None:
    found = import_directory(REAL, "a100-40g")
    cluster = cluster_of(found.profile)
    assert str(cluster) == "a100-40g:2x8" and len(found.left_out) == 10
    assert seconds(cluster, "all_reduce", 128 * MIB, 8, 1) == pytest.approx(1.2826e-3)
    assert seconds(cluster, "all_to_all", 16 * MIB, 4, 1) == pytest.approx(0.1514e-3)
    assert seconds(cluster, "all_reduce", 512 * MIB, 16, 1) == pytest.approx(512 * MIB * 15 / 8 / 44.682e9, rel=0.01)
