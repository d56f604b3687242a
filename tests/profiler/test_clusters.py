"""Profiles as clusters: the rates of a made-up machine come out of its figures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from galvatron.errors import ClusterError
from galvatron.ir.cluster import Cluster
from galvatron.ir.layout import Axis
from galvatron.machine import Kernel, Machine
from galvatron.profiler import store
from galvatron.profiler.clusters import cluster_of, named_cluster
from galvatron.profiler.profile import Measurement, Overlap, Profile
from tests.profiler.profiles import (
    BYTES_PER_S,
    ENVIRONMENT,
    FLOP_PER_S,
    LINK_BYTES_PER_S,
    OVERLAP,
    PROFILE,
    STEP_S,
    all_reduce,
    measurement,
)

CLUSTER = cluster_of(PROFILE)


def test_the_device() -> None:
    device = CLUSTER.device
    assert (device.name, device.kind, device.memory_bytes) == ("Abacus 3000", "cpu", 8 * 2**30)
    assert dict(device.matmul_flop_per_s) == {"f32": pytest.approx(FLOP_PER_S)}
    assert device.memory_bytes_per_s == pytest.approx(BYTES_PER_S)
    assert (device.kernel_launch_s, device.host_op_s) == (2e-6, 3e-6)
    assert dict(device.moving_share) == {"pointwise": pytest.approx(1.0), "norm": pytest.approx(0.5)}
    ((name, rows),) = device.measured.products
    assert name == "f32" and len(rows) == 8 and (1.0, 64.0, 64.0, 512.0, 2 * 64 * 64 * 512 / FLOP_PER_S) in rows
    assert dict(device.measured.moving)["pointwise"] == ((1e4, pytest.approx(1e-5)), (1e7, pytest.approx(1e-2)))
    assert dict(device.measured.moving)["gelu"] == ((1e4, pytest.approx(4e-5)), (1e7, pytest.approx(4e-2)))
    assert device.measured.attention == (("f32.causal.forward", ((8.0, 128.0, 64.0, 1e-3),)),)


@pytest.mark.parametrize("copies_s", [None, 4e-5])
def test_what_the_process_takes_for_an_op_is_of_unlike_ones(copies_s: float | None) -> None:
    among_s = copies_s or 0.0

    def unlike(how: str, seconds: float) -> Measurement:
        return measurement("host", how, seconds, ops=10, ops_and_backward=30)

    measured = [
        unlike("unlike ops", 1e-4 + among_s),
        unlike("unlike ops and backward", 4e-4 + among_s),
        *([unlike("copies", copies_s)] if copies_s else []),
    ]
    device = cluster_of(replace(PROFILE, measurements=(*PROFILE.measurements, *measured))).device
    assert device.host_op_s == pytest.approx(1e-5)
    assert device.host_backward_s == pytest.approx(1.5e-5)


def test_kernels_of_a_backward_have_rates_of_their_own() -> None:
    slower = [measurement("norm", "backward", 6 * n / BYTES_PER_S, bytes=n) for n in (1e4, 1e7)]
    measurements = [m for m in PROFILE.measurements if (m.name, m.how) != ("norm", "backward")]
    machine = Machine(cluster_of(replace(PROFILE, measurements=(*measurements, *slower))))
    kernel = Kernel("native_layer_norm", "f32", 1e6)
    assert machine.kernel_s(kernel) == pytest.approx(2e6 / BYTES_PER_S)
    assert machine.kernel_s(replace(kernel, name="native_layer_norm_backward")) == pytest.approx(6e6 / BYTES_PER_S)


def test_the_levels_of_the_network() -> None:
    node, network = CLUSTER.levels
    assert (node.name, node.parts, network.name, network.parts) == ("node", 2, "network", 2)
    for level in (node, network):
        assert level.bytes_per_s == pytest.approx(LINK_BYTES_PER_S)
        assert level.step_s == pytest.approx(STEP_S)
    assert node.latency_s == pytest.approx(6e-5)  # of the shortest message that was sent one way
    assert network.latency_s == pytest.approx(STEP_S)  # of which there is none


@pytest.mark.parametrize("nbytes", [1e3, 1e7, 1e9])
def test_collectives_take_what_was_measured_and_go_on_as_the_fit_says(nbytes: float) -> None:
    for size, stride in ((2, 1), (2, 2), (4, 1)):
        predicted = Machine(CLUSTER).collective_s("all_reduce", nbytes, Axis("x", size, stride))
        assert predicted == pytest.approx(all_reduce(size, stride, nbytes).seconds, rel=1e-3)


def test_the_text_of_a_measured_cluster_reads_back() -> None:
    assert Cluster.from_json(CLUSTER.to_json()) == CLUSTER


def test_one_device_has_no_links() -> None:
    environment = replace(ENVIRONMENT, nodes=1, devices_per_node=1, backend="none")
    alone = [m for m in PROFILE.measurements if not m.size("group")]
    cluster = cluster_of(replace(PROFILE, environment=environment, measurements=tuple(alone)))
    assert cluster.world_size == 1 and not cluster.collectives


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("product", "no products of matrices"),
        ("pointwise", "no kernels that memory bounds"),
        ("all_reduce", "no all-reduces of 2 ranks, 1 apart"),
    ],
)
def test_too_little_is_no_cluster(name: str, message: str) -> None:
    rest = tuple(m for m in PROFILE.measurements if m.name != name)
    with pytest.raises(ClusterError, match=message):
        cluster_of(replace(PROFILE, measurements=rest))


def test_a_file_names_a_cluster(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    store.save(path, PROFILE)
    assert named_cluster(str(path)).device.name == "Abacus 3000"
    assert named_cluster("a100-80g:1x2").world_size == 2
    store.save(path, replace(PROFILE, environment=replace(ENVIRONMENT, torch="2.11.0")))
    with pytest.raises(ClusterError, match=r"must have one profile to be a cluster, and has 2: .*torch 2\.13\.0"):
        named_cluster(str(path))


def test_the_largest_messages_say_what_a_byte_takes() -> None:
    """A network may take the first bytes at a higher rate, as one with a token bucket does."""
    seconds = {1e3: 0.002, 1e5: 0.004, 1e6: 0.08, 4e6: 0.35}
    reduced = [replace(all_reduce(2, 2, nbytes), seconds=s) for nbytes, s in seconds.items()]
    others = [m for m in PROFILE.measurements if not (m.name == "all_reduce" and m.is_among(2, 2))]
    cluster = cluster_of(replace(PROFILE, measurements=(*others, *reduced)))
    assert cluster.levels[1].bytes_per_s == pytest.approx(4e6 / 0.35, rel=0.05)
    predicted = Machine(cluster).collective_s("all_reduce", 8e6, Axis("x", 2, 2))
    assert predicted == pytest.approx(0.7, rel=0.05)


def test_noise_is_no_rate() -> None:
    reduced = [replace(all_reduce(2, 2, nbytes), seconds=0.5) for nbytes in (1e3, 1e5)]
    others = [m for m in PROFILE.measurements if not (m.name == "all_reduce" and m.is_among(2, 2))]
    cluster = cluster_of(replace(PROFILE, measurements=(*others, *reduced)))
    assert cluster.levels[1].bytes_per_s == pytest.approx(1e5 / 0.5)


@pytest.mark.parametrize(
    ("beside_s", "both_s", "kernel_speed", "collective_speed"),
    [
        (0.004, 0.010, 1.0, 1.0),  # neither notices the other
        (0.004, 0.014, 1.0, 0.0),  # one after the other
        (0.008, 0.014, 0.5, 0.5),  # each gets half of what there is
        (0.003, 0.020, 1.0, 0.0),  # noise
    ],
)
def test_speeds_at_the_same_time(beside_s: float, both_s: float, kernel_speed: float, collective_speed: float) -> None:
    overlap: Overlap = replace(OVERLAP, kernel_beside_s=beside_s, both_s=both_s)
    assert (overlap.kernel_speed, overlap.collective_speed) == pytest.approx((kernel_speed, collective_speed))


@pytest.mark.parametrize(
    ("ranks", "cores", "sharing"),
    [
        (4, 2, ((2.0, 0.5), (4.0, 1.0))),
        (4, 4, ()),
        (2, 1, ((1.0, 0.5), (2.0, 1.0), (4.0, 1.0))),
    ],
)
def test_ranks_that_share_cores_are_as_fast_as_alone_while_there_is_one_for_each(
    ranks: int, cores: int, sharing: tuple[tuple[float, float], ...]
) -> None:
    facts = (*PROFILE.facts, ("sharing_ranks", float(ranks)), ("sharing_cores", float(cores)))
    cluster = cluster_of(replace(PROFILE, facts=facts))
    assert cluster.sharing == sharing
    assert Cluster.from_json(cluster.to_json()) == cluster


def test_a_rank_with_more_threads_than_cores_shares_with_nobody() -> None:
    facts = (*PROFILE.facts, ("sharing_ranks", 1.0), ("sharing_cores", 2.0))
    environment = replace(PROFILE.environment, threads=16)
    assert cluster_of(replace(PROFILE, facts=facts, environment=environment)).sharing == ()


def on_a_gpu(**facts: float) -> Profile:
    environment = replace(PROFILE.environment, kind="cuda")
    return replace(PROFILE, environment=environment, facts=(*PROFILE.facts, *facts.items()))


def test_a_gpu_computes_in_tiles_as_others_of_its_kind() -> None:
    odd = replace(PROFILE.of("product", "nn")[0], how="odd columns", seconds=1.0)
    odd = replace(odd, sizes=tuple((name, size + (name == "columns")) for name, size in odd.sizes))
    profile = on_a_gpu(multiprocessors=100.0, capability=9.0)
    device = cluster_of(replace(profile, measurements=(*profile.measurements, odd))).device
    assert device.products.multiprocessors == 100
    ((aligned_bytes, share),) = device.products.odd_share
    assert aligned_bytes == "4" and 0 < share < 1
    assert device.workspace_bytes > cluster_of(on_a_gpu(capability=8.0)).device.workspace_bytes > 0
    assert cluster_of(on_a_gpu()).device.products.multiprocessors == 0


def test_a_type_that_nothing_has_is_refused() -> None:
    with pytest.raises(ClusterError, match="did you mean"):
        replace(PROFILE, measurements=(replace(PROFILE.measurements[0], dtype="f33"),)).check()


def test_more_ranks_never_compute_faster() -> None:
    for sharing in (((2.0, 1.5), (4.0, 1.0)), ((2.0, 0.5),), ((1.0, 0.1), (4.0, 1.0)), ((3.0, 1.0), (2.0, 1.0))):
        with pytest.raises(ClusterError, match="sharing"):
            replace(cluster_of(PROFILE), sharing=sharing).check()
