"""The dynamic programs against brute force over every plan, on random cost tables."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from galvatron.ir.strategy import Strategy
from galvatron.passes.costs.objective import Setting, evaluate_plan
from galvatron.passes.search.pareto import frontier
from galvatron.passes.search.stages import search_stages
from tests.passes.search.tables import STRATEGIES, TableModel, models


def every_plan(model: TableModel, degree: int) -> Iterator[tuple[tuple[Strategy, ...], ...]]:
    layers = len(model.classes)
    for cuts in itertools.combinations(range(1, layers), degree - 1):
        edges = list(itertools.pairwise((0, *cuts, layers)))
        for choice in itertools.product(STRATEGIES, repeat=layers):
            yield tuple(choice[a:b] for a, b in edges)


@settings(max_examples=150, deadline=None)
@given(models(), st.integers(1, 3), st.sampled_from([1, 2, 4]), st.sampled_from(["gpipe", "1f1b"]), st.integers(5, 150))
def test_finds_the_optimum_of_every_plan(
    model: TableModel, degree: int, micro_batches: int, schedule: str, budget: int
) -> None:
    setting = Setting(16, micro_batches, schedule, degree)
    best = float("inf")
    for stages in every_plan(model, degree):
        step_time_s, reports = evaluate_plan(model, setting, stages)
        if all(r.peak_bytes <= budget for r in reports):
            best = min(best, step_time_s)
    found = search_stages(model, setting, [STRATEGIES] * len(model.classes), budget)
    if best == float("inf"):
        assert found is None
        return
    assert found is not None
    step_time_s, stages = found
    assert step_time_s == pytest.approx(best, rel=1e-12)
    reported, reports = evaluate_plan(model, setting, stages)
    assert reported == pytest.approx(step_time_s, rel=1e-12), "the search's objective is estimate's"
    assert all(r.peak_bytes <= budget for r in reports)
    assert search_stages(model, setting, [STRATEGIES] * len(model.classes), budget, worst_s=best) is None
    better = search_stages(model, setting, [STRATEGIES] * len(model.classes), budget, worst_s=best * 1.01)
    assert better is not None and better[0] == pytest.approx(best, rel=1e-12)


@settings(max_examples=30, deadline=None)
@given(models(), st.integers(20, 150))
def test_a_coarse_search_fits_and_is_never_better(model: TableModel, budget: int) -> None:
    setting, candidates = Setting(16, 4, "1f1b", 2), [STRATEGIES] * len(model.classes)
    exact = search_stages(model, setting, candidates, budget)
    coarse = search_stages(model, setting, candidates, budget, resolution=0.05)
    if coarse is not None:
        assert exact is not None and coarse[0] >= exact[0] - 1e-9
        assert all(r.peak_bytes <= budget for r in evaluate_plan(model, setting, coarse[1])[1])


def test_no_candidates_no_plan() -> None:
    model = TableModel((0,), {}, {}, {}, 0.0, False)
    assert search_stages(model, Setting(4, 1, "1f1b", 1), [[]], 1e9) is None
    assert search_stages(model, Setting(4, 1, "1f1b", 2), [STRATEGIES], 1e9) is None


@given(st.lists(st.tuples(*[st.integers(0, 6)] * 3), max_size=40))
def test_frontier(rows: list[tuple[int, ...]]) -> None:
    values = np.array(rows, dtype=float).reshape(-1, 3)
    kept = {tuple(r) for r in values[frontier(values, np.zeros(3))]}
    rows = [tuple(row) for row in values]
    optimal = {r for r in rows if not any(o != r and all(a <= b for a, b in zip(o, r, strict=True)) for o in rows)}
    assert kept == optimal
