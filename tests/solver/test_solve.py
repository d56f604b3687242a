"""The plain problem, one strategy per layer under one budget: against brute force and an integer program."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp

from galvatron.solver import Choice, InfeasibleError, TableError, solve
from tests.solver.tables import drawn

Tables = tuple[np.ndarray, np.ndarray, np.ndarray, float]


@st.composite
def tables(draw: st.DrawFn) -> Tables:
    """Layers in runs of equal ones, or all alike, or all unlike."""
    layers, strategies, most = draw(st.integers(1, 6)), draw(st.integers(1, 3)), draw(st.sampled_from([1, 4, 12]))
    drawn_, shape = draw(drawn()), (layers, strategies)
    kinds = np.sort(drawn_.random.integers(0, draw(st.integers(1, layers)), layers))
    time = np.where(drawn_.rarely(*shape), np.inf, drawn_.whole(*shape, most=most))[kinds]
    transition = drawn_.whole(*shape, strategies, most=most)
    if draw(st.booleans()):
        transition[:] = transition[0]
        transition[:, range(strategies), range(strategies)] = 0.0
    return time, drawn_.whole(*shape, most=most)[kinds], transition, float(draw(st.integers(0, most * layers)))


def first_best(time: np.ndarray, memory: np.ndarray, transition: np.ndarray, budget: float) -> tuple | None:
    """Seconds, bytes and strategies of the choice that `solve` says it returns."""
    layers, strategies = time.shape
    found = []
    for choice in itertools.product(range(strategies), repeat=layers):
        moved_s = sum(transition[i, s, t] for i, (s, t) in enumerate(itertools.pairwise(choice), 1))
        seconds = moved_s + sum(time[i, s] for i, s in enumerate(choice))
        bytes_ = sum(memory[i, s] for i, s in enumerate(choice))
        if np.isfinite(seconds) and bytes_ <= budget:
            found.append((seconds, bytes_, choice))
    return min(found, default=None)


@settings(max_examples=500, deadline=None)
@given(tables())
def test_finds_the_first_of_the_best(tables: Tables) -> None:
    wanted = first_best(*tables)
    if wanted is None:
        with pytest.raises(InfeasibleError):
            solve(*tables)
        return
    found = solve(*tables)
    assert (found.time, found.memory, found.strategies) == wanted
    assert found.bound == found.time and found.gap == 0.0


@settings(max_examples=100, deadline=None)
@given(tables())
def test_no_fit_says_what_is_needed(tables: Tables) -> None:
    time, memory, transition, budget = tables
    try:
        solve(*tables)
    except InfeasibleError as error:
        if np.isfinite(error.least_bytes):
            assert error.least_bytes > budget and f"at least {error.least_bytes:.0f}" in str(error)
            assert solve(time, memory, transition, error.least_bytes).memory == error.least_bytes
        else:
            assert first_best(time, memory, transition, np.inf) is None


@settings(max_examples=50, deadline=None)
@given(tables())
def test_more_memory_is_never_slower(tables: Tables) -> None:
    time, memory, transition, budget = tables
    times = []
    for more in (0.0, 1.0, 3.0, 100.0, np.inf):
        try:
            times.append(solve(time, memory, transition, budget + more).time)
        except InfeasibleError:
            times.append(np.inf)
    assert times == sorted(times, reverse=True)


def random_tables(seed: int) -> Tables:
    """A dozen layers, some equal, with figures that have no common unit."""
    random = np.random.default_rng(seed)
    layers, strategies = int(random.integers(6, 13)), int(random.integers(3, 6))
    kinds = np.sort(random.integers(0, layers, layers))
    time, memory = random.uniform(1, 3, (layers, strategies)), random.uniform(1e8, 1e9, (layers, strategies))
    transition = random.uniform(0, 0.4, (layers, strategies, strategies))
    time, memory = time[kinds], memory[kinds]
    low, high = memory.min(axis=1).sum(), memory.max(axis=1).sum()
    return time, memory, transition, float(low + random.uniform(0.05, 0.6) * (high - low))


def by_integer_program(time: np.ndarray, memory: np.ndarray, transition: np.ndarray, budget: float) -> float:
    """The least seconds: one variable for each strategy of a layer, and one for each pair of neighbours."""
    layers, strategies = time.shape
    nodes, pairs = layers * strategies, (layers - 1) * strategies**2
    costs = np.concatenate([time.ravel(), transition[1:].ravel()])
    rows, limits = [np.concatenate([memory.ravel(), np.zeros(pairs)]) / budget], [(0.0, 1.0)]
    for layer in range(layers):
        row = np.zeros(nodes + pairs)
        row[layer * strategies : (layer + 1) * strategies] = 1.0
        rows.append(row)
        limits.append((1.0, 1.0))
    for layer, strategy, side in itertools.product(range(1, layers), range(strategies), (0, 1)):
        row = np.zeros(nodes + pairs)
        chosen = row[nodes + (layer - 1) * strategies**2 :][: strategies**2].reshape(strategies, strategies)
        chosen[(strategy, slice(None)) if side == 0 else (slice(None), strategy)] = 1.0
        row[(layer - 1 + side) * strategies + strategy] = -1.0
        rows.append(row)
        limits.append((0.0, 0.0))
    whole = np.concatenate([np.ones(nodes), np.zeros(pairs)])
    low, high = np.array(limits).T
    constraints = LinearConstraint(np.array(rows), low, high)  # pyright: ignore[reportArgumentType]: stubs want floats
    found = milp(
        costs,
        constraints=constraints,
        integrality=whole,
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": 0.0},
    )
    return float(found.fun)


@pytest.mark.parametrize("seed", range(20))
def test_an_integer_program_finds_no_better(seed: int) -> None:
    tables = random_tables(seed)
    found = solve(*tables)
    assert found.time == pytest.approx(by_integer_program(*tables), rel=1e-6)
    assert found.memory <= tables[-1] and found == solve(*tables)


def test_many_equal_layers() -> None:
    """Two kinds of layers, 120 of one: time falls with each byte, so that all of the budget that helps is used."""
    time, memory = np.tile([3.0, 2.0, 1.0], (122, 1)), np.tile([1.0, 2.0, 4.0], (122, 1))
    time[[0, -1]], memory[[0, -1]] = 5.0, 10.0
    transition = np.broadcast_to(1.0 - np.eye(3), (122, 3, 3))
    found = solve(time, memory, transition, 20.0 + 120 * 2 + 1)
    assert found.time == pytest.approx(10 + 240) and found.memory == 20 + 240
    assert found.multiplier == pytest.approx(0.5, rel=0.01)
    assert solve(time, memory, transition, 20.0 + 120 * 2 + 20).time == 10 + 240 - 10 + 1


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"time": np.ones(3)}, r"time: must be \(layers, strategies\), not \(3,\)"),
        ({"memory": np.ones((2, 3))}, r"memory: must be \(2, 2\), as time is \(2, 2\), not \(2, 3\)"),
        ({"transition": np.ones((2, 2))}, r"transition: must be \(2, 2, 2\), "),
        ({"time": np.array([[1.0, 1.0], [1.0, np.nan]])}, "time: layer 1 has a figure that is negative or undefined"),
        ({"memory": np.array([[1.0, -1.0], [1.0, 1.0]])}, "memory: layer 0 has a figure that is negative"),
        ({"transition": np.full((2, 2, 2), -1.0)}, "transition: layer 1 has a figure that is negative"),
        ({"budget": np.nan}, "budget: must be a number of bytes, not nan"),
        ({"width": 0}, "width: must be at least 1, not 0"),
    ],
)
def test_bad_tables_are_refused(changed: dict[str, object], message: str) -> None:
    good: dict = {"time": np.ones((2, 2)), "memory": np.ones((2, 2)), "transition": np.ones((2, 2, 2)), "budget": 4.0}
    assert isinstance(solve(**good), Choice)
    with pytest.raises(TableError, match=message):
        solve(**{**good, **changed})
