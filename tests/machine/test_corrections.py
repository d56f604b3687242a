"""Measurements on a grid as corrections of what figures say."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from galvatron.errors import ClusterError
from galvatron.ir.cluster import Cluster
from galvatron.ir.measurements import CURVES, measured_of
from galvatron.ir.ops.work import product
from galvatron.machine.kernel import Kernel
from galvatron.machine.kernels import Kernels
from galvatron.machine.measured import Corrections

ROWS = ((1.0, 1.0, 2.0), (1.0, 4.0, 4.0), (4.0, 1.0, 6.0), (4.0, 4.0, 32.0))


def area(width: float, height: float) -> float:
    return width * height


def test_points_are_what_was_measured() -> None:
    corrections = Corrections(ROWS, area)
    for *sizes, seconds in ROWS:
        assert corrections(sizes) * area(*sizes) == pytest.approx(seconds)


@given(st.floats(0.01, 100), st.floats(0.01, 100))
def test_between_and_beyond_no_correction_is_beyond_those_measured(width: float, height: float) -> None:
    measured = [seconds / area(*sizes) for *sizes, seconds in ROWS]
    assert min(measured) * (1 - 1e-9) <= Corrections(ROWS, area)((width, height)) <= max(measured) * (1 + 1e-9)


def test_neighbours_speak_for_what_took_too_long() -> None:
    assert Corrections(ROWS[:-1], area)((4.0, 4.0)) == 1.0
    assert Corrections(ROWS[:-1], area)((2.0, 4.0)) == pytest.approx(1.0)  # of (1, 4), since (4, 4) is unknown


@pytest.mark.parametrize("name", CURVES)
def test_a_preset_takes_what_was_measured_on_one_like_it(name: str) -> None:
    device = Cluster.parse(f"{name}:1x1").device
    measured = measured_of(device)
    for dtype, rows in measured.products:
        for *sizes, seconds in rows[:: max(1, len(rows) // 20)]:
            count, height, width, inner = sizes
            work = product(count, height, width, inner)
            elements = count * (height * inner + inner * width + height * width)
            kernel = Kernel("mm", dtype, elements * {"f64": 8, "f32": 4}.get(dtype, 2), work)
            assert Kernels(device).seconds(kernel) == pytest.approx(max(seconds, device.kernel_launch_s))
    by_figures = Kernels(replace(device, curves=""))
    kernel = Kernel("mm", "bf16", 6 * 4096**2, product(1, 4096, 4096, 4096))
    assert by_figures.seconds(kernel) != Kernels(device).seconds(kernel)


def test_curves_that_nobody_measured_are_refused() -> None:
    cluster = Cluster.parse("h100-80g:1x1")
    with pytest.raises(ClusterError, match="did you mean 'h100-80g'"):
        replace(cluster, device=replace(cluster.device, curves="h100-80")).check()


def test_rows_of_few_bytes_take_as_long_as_was_seen() -> None:
    figures = Kernels(replace(Cluster.parse("h100-80g:1x1").device, curves=""))

    def seconds(columns: int) -> float:
        return figures.seconds(
            Kernel("mm", "bf16", 2 * (2 * 8192 * columns + 8192**2), product(1, 8192, columns, 8192))
        )

    even = seconds(8192)
    assert 4.5 * even < seconds(8193) < 5.5 * even  # 145 and 715 TFLOP/s
    assert 2.2 * even < seconds(8194) < 2.7 * even  # 294
    assert seconds(8200) < 1.2 * even  # 715
