"""Seconds of kernels and collectives."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from galvatron.errors import ClusterError
from galvatron.ir.cluster import Cluster, Link
from galvatron.ir.collectives import MESSAGES
from galvatron.ir.device import Device
from galvatron.ir.layout import Axis
from galvatron.ir.ops.work import product
from galvatron.machine import Kernel, Machine


def two_level(nodes: int = 2) -> Machine:
    device = Device("toy", 10**9, (("f32", 1e12),), 1e11, kernel_launch_s=1e-6)
    return Machine(Cluster("toy", device, nodes, 8, Link(100e9, 1e-6), Link(10e9, 5e-6)))


def axis(size: int, stride: int = 1) -> Axis:
    return Axis("x", size, stride)


def test_members_in_a_node_share_the_load_of_the_network() -> None:
    machine = two_level()
    assert machine.link(axis(2, 8)) == Link(10e9, 5e-6)
    assert machine.link(axis(4, 4)) == Link(20e9, 5e-6)
    assert machine.link(axis(16)) == Link(80e9, 5e-6)
    assert machine.link(axis(8)) == Link(100e9, 1e-6)


@pytest.mark.parametrize("kind", MESSAGES)
def test_collectives_grow_with_bytes_and_slow_down_across_nodes(kind: str) -> None:
    machine = two_level()
    assert machine.collective_s(kind, 1e6, axis(1)) == 0
    assert machine.collective_s(kind, 2e6, axis(4)) > machine.collective_s(kind, 1e6, axis(4))
    assert machine.collective_s(kind, 1e6, axis(2, 8)) > machine.collective_s(kind, 1e6, axis(2))


@given(st.integers(2, 8), st.floats(1, 1e9))
def test_all_reduce_is_reduce_scatter_then_all_gather(size: int, payload: float) -> None:
    machine = two_level(nodes=1)
    parts = [machine.collective_s(kind, payload, axis(size)) for kind in ("reduce_scatter", "all_gather")]
    assert machine.collective_s("all_reduce", payload, axis(size)) == pytest.approx(sum(parts))


def test_ring_all_reduce_of_a_published_measurement() -> None:
    """8 GPUs of an A100 node, 1 GB: bus bandwidth 235 GB/s (nccl-tests) is 2·7/8 · 1 GB / 235 GB/s."""
    machine = Machine(Cluster.parse("a100-80g:1x8"))
    assert machine.collective_s("all_reduce", 1e9, axis(8)) == pytest.approx(2 * 7 / 8 / 235, rel=0.02)


def test_unknown_collective() -> None:
    with pytest.raises(ClusterError, match="did you mean 'all_reduce'"):
        two_level().collective_s("allreduce", 1, axis(2))


def test_a_kernel_takes_its_arithmetic_or_its_traffic_and_a_launch() -> None:
    machine = two_level()
    large, small = (Kernel("mm", "f32", 1e6, product(1, n, n, n)) for n in (1000, 10))
    assert machine.kernel_s(large) == pytest.approx(2e9 / 1e12 + machine.launch_s)
    assert machine.kernel_s(small) == pytest.approx(1e6 / 1e11 + machine.launch_s)
    assert machine.work_s(small) == machine.moved_s(1e6) == machine.work_s(Kernel("relu", "f32", 1e6))
