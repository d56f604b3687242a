"""Seconds of collectives: by bytes, and by how a group lies on the levels of the network."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from galvatron.errors import ClusterError
from galvatron.ir.cluster import Cluster
from galvatron.ir.collectives import MESSAGES
from galvatron.ir.device import Device
from galvatron.ir.layout import Axis
from galvatron.ir.network import Level, MeasuredCollective
from galvatron.machine import Machine

DEVICE = Device("toy", 10**9, (("f32", 1e12),), 1e11, kernel_launch_s=1e-6)
NODE, NETWORK = Level("node", 8, 100e9, 1e-6), Level("network", 2, 10e9, 5e-6)
KINDS = sorted(MESSAGES)


def machine(*levels: Level, measured: tuple[MeasuredCollective, ...] = ()) -> Machine:
    return Machine(Cluster("toy", DEVICE, levels or (NODE, NETWORK), measured))


def axis(size: int, stride: int = 1) -> Axis:
    return Axis("x", size, stride)


def rate(machine_: Machine, axis_: Axis) -> float:
    """Bytes/s that one rank sends in a ring all-gather of very many bytes."""
    size = 1e15
    return (axis_.size - 1) / axis_.size * size / machine_.collective_s("all_gather", size, axis_)


def test_members_in_a_node_share_the_load_of_the_network() -> None:
    rates = [rate(machine(), axis(*group)) for group in ((2, 8), (4, 4), (16, 1), (8, 1))]
    assert rates == pytest.approx([10e9, 20e9, 80e9, 100e9])


def test_groups_at_once_share_cards() -> None:
    """Two cards for eight devices: eight groups of one member in each node have a quarter of one each."""
    shared = machine(NODE, replace(NETWORK, cards=2))
    rates = [rate(shared, axis(*group)) for group in ((2, 8), (4, 4), (16, 1), (8, 1))]
    assert rates == pytest.approx([2.5e9, 5e9, 20e9, 100e9])
    # Between stages of one device there is one sender in a node, between those of two there are two.
    sent = [1e12 / shared.collective_s("p2p", 1e12, axis(16 // stage, stage)) for stage in (1, 2, 4, 8)]
    assert sent == pytest.approx([10e9, 10e9, 5e9, 2.5e9])


def test_what_crosses_only_an_upper_level_is_not_held_up_below() -> None:
    slow_inside = machine(replace(NODE, bytes_per_s=1e9), NETWORK)
    assert rate(slow_inside, axis(2, 8)) == pytest.approx(10e9)
    assert rate(slow_inside, axis(16)) == pytest.approx(1e9)


def test_three_levels() -> None:
    three = machine(Level("pair", 2, 100e9, 1e-6), Level("node", 4, 20e9, 2e-6), Level("network", 4, 5e9, 5e-6, 1))
    rates = [rate(three, axis(*group)) for group in ((2, 1), (8, 1), (4, 2), (32, 1), (4, 8), (16, 2))]
    assert rates == pytest.approx([100e9, 40e9, 20e9, 5e9, 5e9 / 8, 2.5e9])
    # Hops of a ring over two nodes of four pairs: eight in pairs, six between them, one between the nodes.
    assert three.collective_s("all_gather", 1e-9, axis(16)) == pytest.approx(8 * 1e-6 + 6 * 2e-6 + 5e-6)


def test_links_of_pairs_are_used_by_groups_together() -> None:
    meshed = machine(replace(NODE, bytes_per_s=90e9, pair_bytes_per_s=15e9))
    rates = [rate(meshed, axis(*group)) for group in ((2, 1), (4, 1), (8, 1), (2, 4))]
    assert rates == pytest.approx([15e9, 45e9, 90e9, 15e9])
    assert meshed.collective_s("p2p", 1e12, axis(8)) == pytest.approx(1e12 / 15e9)


def test_short_messages_have_a_protocol_of_their_own() -> None:
    node = replace(NODE, start_s=10e-6, step_s=8e-6, quick_bytes_per_s=50e9, quick_step_s=1e-6)
    both, full = machine(node), machine(replace(node, quick_bytes_per_s=None, quick_step_s=None))
    eight = axis(8)
    assert both.collective_s("all_reduce", 1e3, eight) == pytest.approx(10e-6 + 14e-6 + 1.75e3 / 50e9)
    assert both.collective_s("all_reduce", 1e9, eight) == full.collective_s("all_reduce", 1e9, eight)


def test_an_all_reduce_goes_up_and_down_a_tree_of_nodes() -> None:
    many = machine(replace(NODE, parts=1), replace(NETWORK, parts=1024))
    assert many.collective_s("all_reduce", 1e-9, axis(1024)) == pytest.approx(2 * 10 * 5e-6)
    assert many.collective_s("all_gather", 1e-9, axis(1024)) == pytest.approx(1023 * 5e-6)


def test_all_to_all_uses_each_link_for_what_crosses_it() -> None:
    """16 ranks on two nodes: of 16 parts each rank sends 8 over its card."""
    assert machine().collective_s("all_to_all", 16e9, axis(16)) == pytest.approx(8e9 / 10e9, rel=1e-3)
    assert machine().collective_s("all_to_all", 8e9, axis(8)) == pytest.approx(7e9 / 100e9, rel=1e-3)


def test_what_was_measured_counts_for_its_shape() -> None:
    points = ((1e3, 1e-4), (1e6, 1e-3))
    known = machine(measured=(MeasuredCollective("all_reduce", 4, 2, points, 1e9),))
    assert known.collective_s("all_reduce", 1e6, axis(4, 2)) == 1e-3
    assert known.collective_s("all_reduce", 10.0, axis(4, 2)) == 1e-4
    assert known.collective_s("all_reduce", 1e6 + 1e9, axis(4, 2)) == pytest.approx(1.001)
    for kind, group in (("all_reduce", axis(4, 1)), ("all_reduce", axis(2, 2)), ("all_gather", axis(4, 2))):
        assert known.collective_s(kind, 1e6, group) == machine().collective_s(kind, 1e6, group)


@pytest.mark.parametrize("kind", KINDS)
def test_a_group_of_one_sends_nothing(kind: str) -> None:
    assert machine().collective_s(kind, 1e6, axis(1)) == 0


def test_unknown_collective() -> None:
    with pytest.raises(ClusterError, match="did you mean 'all_reduce'"):
        machine().collective_s("allreduce", 1, axis(2))


RATES = st.floats(1e6, 1e13)
TIMES = st.floats(0, 1e-3)


@st.composite
def networks(draw: st.DrawFn) -> tuple[Level, ...]:
    """One to four levels of 1, 2, 4 or 8 parts each."""
    quick = st.just((None, None)) | st.tuples(RATES, TIMES)
    return tuple(
        Level(
            name,
            2 ** draw(st.integers(0, 3)),
            draw(RATES),
            draw(TIMES),
            draw(st.integers(0, 8)),
            draw(TIMES),
            draw(st.none() | TIMES),
            *draw(quick),
        )
        for name in ("pair", "node", "rack", "network")[: draw(st.integers(1, 4))]
    )


@st.composite
def placed(draw: st.DrawFn) -> tuple[tuple[Level, ...], Axis]:
    """A network and an axis of powers of two on it, of at least two ranks."""
    levels = (*draw(networks()), Level("top", 2, draw(RATES), draw(TIMES)))
    most = int(math.log2(math.prod(level.parts for level in levels)))
    size = draw(st.integers(1, most))
    return levels, axis(2**size, 2 ** draw(st.integers(0, most - size)))


@given(placed(), st.sampled_from(KINDS), st.floats(1, 1e13), st.floats(1, 1e3))
def test_more_bytes_never_take_less(case: tuple[tuple[Level, ...], Axis], kind: str, size: float, more: float) -> None:
    levels, group = case
    machine_ = machine(*levels)
    seconds = machine_.collective_s(kind, size, group)
    assert 0 < seconds <= machine_.collective_s(kind, size * more, group) < math.inf


@given(placed(), st.data(), st.sampled_from(KINDS), st.floats(1, 1e13), st.floats(1, 100))
def test_faster_links_never_take_longer(
    case: tuple[tuple[Level, ...], Axis], data: st.DataObject, kind: str, size: float, factor: float
) -> None:
    levels, group = case
    at = data.draw(st.integers(0, len(levels) - 1))
    slow = levels[at]
    figures = ("bytes_per_s", "latency_s", "start_s", "step_s", "quick_bytes_per_s", "quick_step_s")
    name = data.draw(st.sampled_from([f for f in figures if getattr(slow, f) is not None]))
    value = getattr(slow, name)
    faster = replace(slow, **{name: value * factor if name.endswith("per_s") else value / factor})
    fast = machine(*levels[:at], faster, *levels[at + 1 :])
    assert fast.collective_s(kind, size, group) <= machine(*levels).collective_s(kind, size, group) * (1 + 1e-12)


@given(placed(), st.sampled_from(sorted({*KINDS} - {"p2p"})), st.floats(1, 1e13))
def test_a_bigger_group_never_takes_less(case: tuple[tuple[Level, ...], Axis], kind: str, size: float) -> None:
    """Groups that join what smaller ones of the same stride had apart."""
    levels, group = case
    machine_ = machine(*levels)
    half = axis(group.size // 2, group.stride)
    assert machine_.collective_s(kind, size, half) <= machine_.collective_s(kind, size, group) * (1 + 1e-12)


@given(placed(), st.floats(1, 1e13))
def test_an_all_reduce_takes_no_longer_than_its_two_halves(case: tuple[tuple[Level, ...], Axis], size: float) -> None:
    levels, group = case
    machine_ = machine(*levels)
    halves = sum(machine_.collective_s(kind, size, group) for kind in ("reduce_scatter", "all_gather"))
    assert machine_.collective_s("all_reduce", size, group) <= halves * (1 + 1e-12)
