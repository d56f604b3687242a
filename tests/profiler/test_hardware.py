"""One pass over the hardware: everything is measured once, and all ranks have the same profile."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch

from galvatron.profiler import grids, hardware, overlap
from galvatron.profiler.clusters import cluster_of
from galvatron.profiler.collectives import axis_shapes
from galvatron.profiler.document import print_profiles, read_profiles
from galvatron.profiler.hardware import expected_s, measured_again, profile_hardware
from galvatron.profiler.meter import Effort, Meter, spread_of
from galvatron.profiler.profile import Profile
from galvatron.runtime.mesh import World
from tests.profiler.profiles import TINY, TINY_GRIDS, TINY_MESSAGES
from tests.ranks import run_ranks

ALONE = World(0, 1, torch.device("cpu"))


def make_tiny() -> None:
    grids.GRIDS["cpu", "tiny"] = TINY_GRIDS
    grids.MESSAGE_BYTES["tiny"] = TINY_MESSAGES
    overlap._LONG_S["cpu"], overlap._LONG_BYTES = 0.0, 1  # pyright: ignore[reportAttributeAccessIssue]


@pytest.fixture(autouse=True)
def tiny_sizes() -> Iterator[None]:
    before = overlap._LONG_S["cpu"], overlap._LONG_BYTES
    make_tiny()
    yield
    del grids.GRIDS["cpu", "tiny"], grids.MESSAGE_BYTES["tiny"]
    overlap._LONG_S["cpu"], overlap._LONG_BYTES = before  # pyright: ignore[reportAttributeAccessIssue]


def two_ranks(world: World) -> tuple[str, list[float]]:
    make_tiny()
    told: list[float] = []
    profile = profile_hardware(world, TINY, lambda what, share: told.append(share))
    again = measured_again(world, profile)
    assert len(again) == 1 and all(seconds > 0 for _, seconds in again)  # no product is one of a glance
    return print_profiles([profile]), told


def names(profile: Profile) -> set[tuple[str, str]]:
    return {(m.name, m.how) for m in profile.measurements}


def test_one_process() -> None:
    profile = profile_hardware(ALONE, TINY)
    environment = profile.environment
    assert (environment.nodes, environment.devices_per_node, environment.backend) == (1, 1, "none")
    assert environment.memory_bytes > 2**28 and environment.cores >= 1 and environment.torch == torch.__version__
    products = profile.of("product", "nn", "f32")
    assert len(products) == 2 * 2**3
    for name in ("norm", "softmax", "copy", "reduction", "gather", "scatter", "optimizer"):
        assert len(profile.of(name)) in (2, 4)
    assert {("attention", "forward"), ("attention", "causal backward"), ("host", "unlike ops and backward")} <= names(
        profile
    )
    assert not profile.overlaps and not any(m.size("group") for m in profile.measurements)
    assert all(1e-8 < m.seconds < 10 for m in profile.measurements)
    assert profile.fact("context_bytes") != 0
    cluster = cluster_of(profile)
    assert str(cluster) == "local:1x1" and cluster.device.flop_per_s("f32") > 1e6


def test_two_ranks_have_one_profile() -> None:
    (text, told), (other, _) = run_ranks(two_ranks, 2, timeout=120)
    assert text == other
    assert told == sorted(told) and told[0] < 0.1 and 0.7 < told[-1] <= 1
    (profile,) = read_profiles(text)
    assert (profile.environment.devices_per_node, profile.environment.backend) == (2, "gloo")
    kinds = {name for name, _ in names(profile)}
    assert {"all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast", "p2p"} <= kinds
    for how in ("one way", "both ways"):
        assert [m.size("bytes") for m in profile.of("p2p", how)] == list(TINY_MESSAGES)
    assert len(profile.of("shared cores", "product")) == 2
    overlaps = {(o.collective, o.kernel) for o in profile.overlaps}
    assert {("all_reduce", "product"), ("all_gather", "pointwise"), ("p2p both ways", "product")} <= overlaps
    cluster = cluster_of(profile)
    assert str(cluster) == "local:1x2"
    assert {c.name for c in cluster.collectives} == {m for m in kinds if profile.of(m)[0].size("group")}


def failing_rank(world: World) -> None:
    make_tiny()
    if world.rank == 1:
        raise_from(hardware)
    profile_hardware(world, TINY)


def raise_from(module: object) -> None:
    def refuse(*arguments: object) -> None:
        raise RuntimeError("this device is on fire")

    module.memory_facts = refuse  # type: ignore[attr-defined]  # the process is not used again


def test_an_error_of_a_rank_ends_all() -> None:
    with pytest.raises(AssertionError) as caught:
        run_ranks(failing_rank, 2, timeout=60)
    errors: dict[int, str] = caught.value.errors  # type: ignore[attr-defined]  # RankFailure's
    assert "this device is on fire" in errors[1]
    assert errors[0] == "the process ended with status 1", "it was not left waiting"


def test_shapes_of_groups() -> None:
    assert axis_shapes(1, 1, all_of_them=True) == []
    assert axis_shapes(4, 4, all_of_them=True) == [(2, 1), (2, 2), (4, 1)]
    assert axis_shapes(6, 6, all_of_them=True) == [(2, 1), (2, 3), (3, 1), (3, 2), (6, 1)]
    assert axis_shapes(8, 4, all_of_them=False) == [(2, 1), (2, 4), (4, 1), (8, 1)]


def test_what_takes_too_long_or_too_much_is_left_out() -> None:
    hurried = Effort("tiny", total_s=0.0, window_s=1e-4, certainty=1.0, windows=(1, 1), longest_s=1e-12)
    profile = profile_hardware(ALONE, hurried)
    assert [m.size("bytes") for m in profile.of("pointwise", "add")] == [3 * 4 * 2**10]  # the smallest is always tried


def test_what_any_call_takes_is_no_reason_to_leave_out_larger_ones() -> None:
    first = (2.0**10, 5e-4)
    assert expected_s(first, first, 2.0**28) == 5e-4
    assert expected_s(first, (2.0**20, 1.5e-3), 2.0**22) == pytest.approx(1.5e-3 + 3e-3, rel=0.01)
    assert expected_s(first, (2.0**20, 4e-4), 2.0**22) == 4e-4


def test_a_meter_stops_when_it_is_certain() -> None:
    calls: list[int] = []
    patient = Effort("tiny", total_s=1.0, window_s=1e-6, certainty=1e3, windows=(3, 50), longest_s=1.0)
    timing = Meter(ALONE, patient).free(lambda: calls.append(1), share_s=60.0)
    assert timing.repeats == 3 and timing.seconds > 0
    stubborn = Effort("tiny", total_s=1.0, window_s=1e-6, certainty=0.0, windows=(3, 7), longest_s=1.0)
    assert Meter(ALONE, stubborn).free(lambda: calls.append(1), share_s=60.0).repeats == 7


def test_spread() -> None:
    assert spread_of([1.0]) == 0.0
    assert spread_of([1.0, 1.0, 1.0]) == 0.0
    assert math.isclose(spread_of([1.0, 2.0, 3.0, 4.0, 5.0]), 2 / 3)
