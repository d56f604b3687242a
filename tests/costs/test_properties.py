"""What must hold of predictions whatever the numbers are."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from galvatron.costs.estimate import estimate_plan, setting_of
from galvatron.costs.events import launches
from galvatron.costs.objective import peak_bytes
from galvatron.costs.profile import profile_graph
from galvatron.ir.cluster import Cluster
from galvatron.ir.device import Device
from galvatron.ir.network import Level
from galvatron.ir.planned import PlanShorthand, fitted
from galvatron.ir.program import Program
from tests.ir.programs import clustered

PLANS = (
    "pp1/m2/1f1b/dp4", "pp1/m2/gpipe/dp2-tp2+sp-zero1", "pp2/m4/1f1b/tp2", "pp1/m1/1f1b/dp4-zero3-recompute",
    "pp2/m4/zbv/dp2-zero2", "pp2/m2/interleaved2/ulysses2",
)  # fmt: skip
DEVICE = ("memory_bytes_per_s", "kernel_launch_s", "host_op_s", "host_view_s", "matmul_flop_per_s")
LINK = ("bytes_per_s", "latency_s", "start_s", "step_s", "quick_bytes_per_s", "quick_step_s")


@cache
def cluster() -> Cluster:
    return Cluster.parse("a100-80g:2x2")


def on(cluster: Cluster, batch_size: int = 16) -> Program:
    return replace(clustered(), cluster=cluster, batch_size=batch_size)


@cache
def predicted_s(plan: str, cluster: Cluster) -> float:
    program = on(cluster)
    return estimate_plan(program, fitted(PlanShorthand.parse(plan), program, cluster.world_size, 16))[0]


def faster_field(name: str, value: float | None, factor: float) -> float | None:
    """A rate so many times as high, or a time so many times as short."""
    if value is None:
        return None
    return value * factor if name.endswith("per_s") else value / factor


def faster_device(device: Device, names: frozenset[str], factor: float) -> Device:
    own: dict[str, Any] = {n: faster_field(n, getattr(device, n), factor) for n in names - {"matmul_flop_per_s"}}
    if "matmul_flop_per_s" in names:
        own["matmul_flop_per_s"] = tuple((dtype, rate * factor) for dtype, rate in device.matmul_flop_per_s)
    return replace(device, **own)


def faster_link(level: Level, names: frozenset[str], factor: float) -> Level:
    return replace(level, **{n: faster_field(n, getattr(level, n), factor) for n in names})


factors = st.sampled_from([1.01, 1.5, 8.0])


# Not of `zbv`: a backward that is bound by what is sent beside it is as long with faster products, of which less then
# counts as gradients of weights, and more as what the stage before waits for.
@pytest.mark.parametrize("plan", [plan for plan in PLANS if "zbv" not in plan])
@settings(max_examples=8, deadline=None)
@given(names=st.frozensets(st.sampled_from(DEVICE), min_size=1), factor=factors)
def test_a_faster_device_never_slows_a_plan(plan: str, names: frozenset[str], factor: float) -> None:
    faster = replace(cluster(), device=faster_device(cluster().device, names, factor))
    assert predicted_s(plan, faster) <= predicted_s(plan, cluster()) * (1 + 1e-9)


@pytest.mark.parametrize("plan", PLANS)
@settings(max_examples=8, deadline=None)
@given(names=st.frozensets(st.sampled_from(LINK), min_size=1), level=st.integers(0, 1), factor=factors)
def test_a_faster_link_never_slows_a_plan(plan: str, names: frozenset[str], level: int, factor: float) -> None:
    levels = tuple(faster_link(one, names, factor) if i == level else one for i, one in enumerate(cluster().levels))
    assert predicted_s(plan, replace(cluster(), levels=levels)) <= predicted_s(plan, cluster()) * (1 + 1e-9)


@pytest.mark.parametrize("behind", ["", "-zero1", "-zero2", "-zero3", "-recompute", "-tp2+sp-zero3"])
def test_more_data_parallelism_never_raises_memory(behind: str) -> None:
    """Per device, of the same batch in as many micro-batches, on more devices."""
    found: list[int] = []
    others = 2 if "tp2" in behind else 1
    for degree in (1, 2, 4, 8):
        program = on(Cluster.parse(f"a100-80g:1x{degree * others}"))
        plan = fitted(PlanShorthand.parse(f"pp1/m2/1f1b/dp{degree}{behind}"), program, degree * others, 16)
        found.append(max(peak_bytes(setting_of(program, plan), estimate_plan(program, plan)[1])))
    assert found == sorted(found, reverse=True)
    assert found[-1] < found[0]


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_samples_scale_arithmetic(kind: str) -> None:
    """So many times the samples are so many times the products, forward and backward."""
    for cls in clustered().classes:
        profile = profile_graph(
            cls.graph, (), frozenset(v.name for v in (*cls.graph.inputs, *cls.graph.state)), kind=kind
        )
        for part in (profile.forward, profile.backward):
            one, seven = (sum(e.at(batch).flop for e in launches(part)) for batch in (1, 7))
            assert seven == pytest.approx(7 * one)
