"""Layers that share out the memory of a device."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from galvatron.solver.hulls import Hull, shared_out

_POINTS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=4)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(_POINTS, st.integers(1, 2)), min_size=1, max_size=3), st.integers(0, 40))
def test_as_good_as_any_choice_but_for_one_step(layers: list[tuple[list[tuple[int, int]], int]], budget: int) -> None:
    hulls = [(Hull.of(*np.array(points, dtype=float).T), count) for points, count in layers]
    seconds, lacking = shared_out(hulls, budget)
    every = [points for points, count in layers for _ in range(count)]
    totals = [tuple(map(sum, zip(*choice, strict=True))) for choice in itertools.product(*every)]
    best_s = min((s for bytes_, s in totals if bytes_ <= budget), default=np.inf)
    step_s = max((hull.saved.max(initial=0.0) for hull, _ in hulls), default=0.0)
    assert lacking == max(0, min(bytes_ for bytes_, _ in totals) - budget)
    assert best_s <= seconds + 1e-9 and (np.isinf(best_s) or seconds <= best_s + step_s + 1e-9)


def test_strategies_that_are_none_are_left_out() -> None:
    hull = Hull.of(np.array([1.0, 2.0, 3.0]), np.array([np.inf, 5.0, 4.0]))
    assert (hull.bytes, hull.seconds) == (2.0, 5.0) and shared_out([(hull, 2)], 5.0) == (9.0, 0.0)
    nothing = Hull.of(np.array([1.0]), np.array([np.inf]))
    assert shared_out([(nothing, 1)], 5.0)[0] == np.inf


def test_the_step_that_saves_most_for_its_bytes_is_taken_first() -> None:
    steep, flat = (
        Hull.of(np.array([0.0, 1.0]), np.array([9.0, 1.0])),
        Hull.of(np.array([0.0, 4.0]), np.array([9.0, 8.0])),
    )
    assert shared_out([(flat, 1), (steep, 1)], 4.0) == (pytest.approx(10.0), 0.0)
