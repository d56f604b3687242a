"""What is left out is needed by no best choice."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from galvatron.solver import Pipeline
from galvatron.solver.reduced import without_worse, without_worse_places
from tests.solver.tables import best_of, pipelines


@settings(max_examples=300, deadline=None)
@given(pipelines(alike=True))
def test_the_best_choice_takes_as_long(pipeline: Pipeline) -> None:
    best_s = best_of(pipeline)
    for reduce in (without_worse, without_worse_places):
        pipeline, columns = reduce(pipeline)
        if not len(columns):
            assert not np.isfinite(best_s)
            return
        assert best_of(pipeline) == pytest.approx(best_s, rel=1e-12)
        assert pipeline.chain.strategies == len(columns) and (np.diff(columns) > 0).all()


@settings(max_examples=50, deadline=None)
@given(pipelines(), st.integers(0, 2))
def test_a_strategy_that_costs_more_is_left_out(pipeline: Pipeline, which: int) -> None:
    """A copy of one, in the same place, that takes a second more."""
    which = which % pipeline.chain.strategies
    twice = pipeline.only(np.sort([*range(pipeline.chain.strategies), which]))
    twice.chain.step_s[:, which + 1] += 1
    assert which + 1 not in without_worse(twice)[1]
