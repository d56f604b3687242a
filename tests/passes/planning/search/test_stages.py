"""The dynamic programs against brute force over every plan, on random cost tables."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from galvatron.costs.objective import Setting, StageReport, evaluate_plan
from galvatron.ir.strategy import Strategy
from galvatron.partition.ties import agreement
from galvatron.passes.planning.search import fastest
from galvatron.passes.planning.search.cases import Case, cases, rest
from galvatron.passes.planning.search.pareto import frontier
from galvatron.passes.planning.search.stages import search_stages
from tests.passes.planning.search.tables import STRATEGIES, TableModel, models


def every_plan(model: TableModel, degree: int) -> Iterator[tuple[tuple[Strategy, ...], ...]]:
    layers = len(model.classes)
    for cuts in itertools.combinations(range(1, layers), degree - 1):
        edges = list(itertools.pairwise((0, *cuts, layers)))
        for choice in itertools.product(STRATEGIES, repeat=layers):
            yield tuple(choice[a:b] for a, b in edges)


def bytes_of(report: StageReport) -> float:
    """The peak memory of a stage; `peak_bytes` rounds, and tables have half bytes."""
    return report.state_bytes + report.activation_bytes + report.extra_bytes


@settings(max_examples=100, deadline=None)
@given(models(), st.integers(1, 3), st.sampled_from([1, 2, 4]), st.sampled_from(["gpipe", "1f1b"]), st.integers(5, 150))
def test_finds_the_optimum_of_every_plan(
    model: TableModel, degree: int, micro_batches: int, schedule: str, budget: int
) -> None:
    setting = Setting(16, micro_batches, schedule, degree)
    best = float("inf")
    for stages in every_plan(model, degree):
        step_time_s, reports = evaluate_plan(model, setting, stages)
        if all(bytes_of(r) <= budget for r in reports):
            best = min(best, step_time_s)
    candidates = [STRATEGIES] * len(model.classes)
    found = fastest(model, [(setting, candidates)], budget, 0.0)
    if best == float("inf"):
        assert found is None
        return
    assert found is not None
    reported, reports = evaluate_plan(model, setting, found[1])
    assert reported == pytest.approx(best, rel=1e-12)
    assert all(bytes_of(r) <= budget for r in reports)


@settings(max_examples=30, deadline=None)
@given(models(tied=False), st.integers(1, 3), st.integers(5, 150))
def test_the_objective_is_that_of_estimate(model: TableModel, degree: int, budget: int) -> None:
    setting, candidates = Setting(16, 4, "1f1b", degree), [STRATEGIES] * len(model.classes)
    found = search_stages(model, setting, candidates, budget)
    if found is None:
        return
    best, stages = found
    assert evaluate_plan(model, setting, stages)[0] == pytest.approx(best, rel=1e-12)
    assert search_stages(model, setting, candidates, budget, worst_s=best) is None
    better = search_stages(model, setting, candidates, budget, worst_s=best * 1.01)
    assert better is not None and better[0] == pytest.approx(best, rel=1e-12)


def prices(model: TableModel, case: Case, plan: tuple[Strategy, ...]) -> bool:
    """Whether a plan is in a case that prices it as it is."""
    inside = all(strategy in options for strategy, options in zip(plan, case.candidates, strict=True))
    agreed = (i for i, layers in enumerate(model.ties) if agreement(plan[layer] for layer in layers))
    return inside and case.agreed == frozenset(agreed)


@pytest.mark.parametrize("ties", [(), ((0, 3),), ((0, 1, 3),), ((0, 2), (1, 3)), ((2,),)])
def test_every_plan_is_in_one_case_that_prices_it_as_it_is(ties: tuple[tuple[int, ...], ...]) -> None:
    """At first, and after those were taken out that agree where their case does not know of it."""
    options = (*STRATEGIES, Strategy.parse("dp1-tp4"))
    model = TableModel((0,) * 4, {}, {}, {}, {}, ties)
    plans = list(itertools.product(options, repeat=4))
    left = list(cases(model, Setting(16, 1, "gpipe", 1), [options] * 4))
    assert len(left) == 3 ** len(ties)
    for plan in [None, *plans[::7]]:
        inside = [c for c in left if plan and all(s in found for s, found in zip(plan, c.candidates, strict=True))]
        for case in inside:
            others = rest(model, case, plan or ())
            if others is not None:
                left = [c for c in left if c is not case] + others
        assert all(sum(prices(model, case, other) for case in left) == 1 for other in plans)


@settings(max_examples=30, deadline=None)
@given(models(), st.integers(20, 150))
def test_a_coarse_search_fits_and_is_never_better(model: TableModel, budget: int) -> None:
    setting, candidates = Setting(16, 4, "1f1b", 2), [STRATEGIES] * len(model.classes)
    exact = fastest(model, [(setting, candidates)], budget, 0.0)
    coarse = fastest(model, [(setting, candidates)], budget, 0.05)
    if coarse is not None:
        assert exact is not None
        step_time_s, reports = evaluate_plan(model, setting, coarse[1])
        assert step_time_s >= evaluate_plan(model, setting, exact[1])[0] - 1e-9
        assert all(bytes_of(r) <= budget for r in reports)


def test_no_candidates_no_plan() -> None:
    model = TableModel((0,), {}, {}, {}, {})
    assert search_stages(model, Setting(4, 1, "1f1b", 1), [[]], 1e9) is None
    assert search_stages(model, Setting(4, 1, "1f1b", 2), [STRATEGIES], 1e9) is None


@given(st.lists(st.tuples(*[st.integers(0, 6)] * 3), max_size=40))
def test_frontier(rows: list[tuple[int, ...]]) -> None:
    values = np.array(rows, dtype=float).reshape(-1, 3)
    kept = {tuple(r) for r in values[frontier(values, np.zeros(3))]}
    rows = [tuple(row) for row in values]
    optimal = {r for r in rows if not any(o != r and all(a <= b for a, b in zip(o, r, strict=True)) for o in rows)}
    assert kept == optimal
