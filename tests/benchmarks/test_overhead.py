"""The fit behind the overhead figures."""

from __future__ import annotations

import pytest
from overhead import DEPTHS, line, lines


def test_line_through_its_own_points() -> None:
    assert line([1.0, 2.0, 5.0], [7.0, 9.0, 15.0]) == pytest.approx((2.0, 5.0))


def test_lines_are_fitted_round_by_round_in_microseconds() -> None:
    seconds = [[1e-6 * (3 * depth + 10), 1e-6 * (4 * depth + 20)] for depth in DEPTHS]
    slopes, starts = lines(seconds)
    assert slopes == pytest.approx([3.0, 4.0])
    assert starts == pytest.approx([10.0, 20.0])
