"""What the fullest of several devices has at least."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from galvatron.solver.spread import fullest


@given(st.lists(st.integers(0, 20), min_size=1, max_size=6), st.integers(1, 3))
def test_no_spread_has_less(weights: list[int], devices: int) -> None:
    spreads = itertools.product(range(devices), repeat=len(weights))
    best = min(np.bincount(spread, weights, devices).max() for spread in spreads)
    assert fullest(np.array(weights, dtype=float), devices) <= best


def test_layers_are_whole() -> None:
    assert fullest(np.ones(9), 4) == 3.0
    assert fullest(np.array([0.5, *np.ones(32), 0.1]), 4) == 8.5
    assert fullest(np.array([5.0, 1.0, 1.0]), 3) == 5.0
