"""Curves go through what was measured, rise, and go on at the last rate."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from galvatron.ir.curves import Curve

measured = st.lists(st.tuples(st.floats(1, 1e12), st.floats(1e-9, 1e3)), min_size=1, max_size=20)


def test_through_its_points_and_beyond() -> None:
    curve = Curve(((10.0, 1.0), (1000.0, 100.0), (2000.0, 300.0)))
    assert [curve(size) for size in (1, 10, 2000)] == [1.0, 1.0, 300.0]
    assert curve(100) == pytest.approx(10)
    assert curve(3000) == pytest.approx(500)


def test_a_single_point_is_a_rate() -> None:
    assert Curve(((10.0, 1.0),))(20) == pytest.approx(2)


@given(measured, st.floats(1, 1e15), st.floats(1, 1e15))
def test_a_curve_never_falls(points: list[tuple[float, float]], a: float, b: float) -> None:
    curve = Curve.through(points)
    assert curve(min(a, b)) <= curve(max(a, b)) * (1 + 1e-9)
