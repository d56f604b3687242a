"""Stages against brute force over every division and choice."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings

from galvatron.solver import InfeasibleError, Pipeline, Solution, solve_pipeline
from galvatron.solver.bounds import bounds_of
from galvatron.solver.tables import worth
from tests.solver.tables import best_of, every_choice, pipelines, priced, roomier


def solved(pipeline: Pipeline) -> Solution | None:
    try:
        return solve_pipeline(pipeline)
    except InfeasibleError:
        return None


@settings(max_examples=400, deadline=None)
@given(pipelines())
def test_finds_the_optimum_of_every_choice(pipeline: Pipeline) -> None:
    best_s, found = best_of(pipeline), solved(pipeline)
    if not np.isfinite(best_s):
        assert found is None
        return
    assert found is not None
    assert found.step_s == found.bound_s == pytest.approx(best_s, rel=1e-12)
    step_s, peaks = priced(pipeline, tuple(found.choice), tuple(found.borders))
    assert step_s == pytest.approx(found.step_s, rel=1e-12)
    assert peaks == pytest.approx(found.bytes, rel=1e-12) and (found.bytes <= pipeline.budget).all()


@settings(max_examples=100, deadline=None)
@given(pipelines())
def test_bounds_hold(pipeline: Pipeline) -> None:
    """Also of every choice that goes through a layer in a strategy, and of every division."""
    bounds = bounds_of(pipeline)
    assert bounds.least_s <= best_of(pipeline) * (1 + 1e-9)
    for choice, borders in every_choice(pipeline):
        step_s, peaks = priced(pipeline, choice, borders)
        if (peaks <= pipeline.budget).all() and np.isfinite(step_s):
            allowed, enterable = bounds.allowed([step_s + 1e-9] * len(bounds.relaxations))
            stage = np.searchsorted(borders, np.arange(len(choice)), side="right") - 1
            assert allowed[stage, np.arange(len(choice)), choice].all()
            assert enterable[np.arange(pipeline.stages), borders[:-1]].all()


@settings(max_examples=100, deadline=None)
@given(pipelines())
def test_what_a_choice_takes(pipeline: Pipeline) -> None:
    for choice, borders in every_choice(pipeline):
        step_s, peaks = priced(pipeline, choice, borders)
        found = worth(pipeline, np.array(choice), np.array(borders))
        assert found.bytes == pytest.approx(peaks) and found.step_s == pytest.approx(step_s)


@settings(max_examples=50, deadline=None)
@given(pipelines())
def test_more_memory_is_never_slower(pipeline: Pipeline) -> None:
    found = [solved(roomier(pipeline, more)) for more in (0.0, 1.0, 5.0, 200.0)]
    times = [np.inf if one is None else one.step_s for one in found]
    assert times == sorted(times, reverse=True)


@settings(max_examples=50, deadline=None)
@given(pipelines())
def test_what_is_known_must_be_reached(pipeline: Pipeline) -> None:
    if (found := solved(pipeline)) is None:
        return
    assert solve_pipeline(pipeline, known_s=found.step_s - 0.5) is None
    again = solve_pipeline(pipeline, known_s=found.step_s + 0.5)
    assert again is not None and again.step_s == found.step_s


@settings(max_examples=50, deadline=None)
@given(pipelines())
def test_a_narrow_search_says_how_far_it_may_be_off(pipeline: Pipeline) -> None:
    best_s = best_of(pipeline)
    try:
        found = solve_pipeline(pipeline, width=1)
    except InfeasibleError:
        return
    assert found is not None and (found.bytes <= pipeline.budget).all()
    assert found.bound_s <= best_s * (1 + 1e-9) <= found.step_s * (1 + 2e-9)
