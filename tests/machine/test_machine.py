"""Seconds of kernels."""

from __future__ import annotations

import pytest

from galvatron.ir.cluster import Cluster
from galvatron.ir.device import Device
from galvatron.ir.network import Level
from galvatron.ir.ops.work import product
from galvatron.machine import Kernel, Machine


def two_level(nodes: int = 2) -> Machine:
    device = Device("toy", 10**9, (("f32", 1e12),), 1e11, kernel_launch_s=1e-6)
    return Machine(Cluster("toy", device, (Level("node", 8, 100e9, 1e-6), Level("network", nodes, 10e9, 5e-6))))


def test_a_kernel_takes_its_arithmetic_or_its_traffic_and_a_launch() -> None:
    machine = two_level()
    large, small = (Kernel("mm", "f32", 1e6, product(1, n, n, n)) for n in (1000, 10))
    assert machine.kernel_s(large) == pytest.approx(2e9 / 1e12 + machine.launch_s)
    assert machine.kernel_s(small) == pytest.approx(1e6 / 1e11 + machine.launch_s)
    assert machine.work_s(small) == machine.moved_s(1e6) == machine.work_s(Kernel("relu", "f32", 1e6))
