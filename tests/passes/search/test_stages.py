"""The dynamic programs against brute force over every plan, on random cost tables."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from galvatron.ir.strategy import Strategy
from galvatron.passes.costs.model import LayerCost, Tie
from galvatron.passes.costs.objective import Setting, evaluate_plan
from galvatron.passes.search.pareto import frontier
from galvatron.passes.search.stages import search_stages

STRATEGIES = tuple(Strategy.parse(s) for s in ("dp4-tp1", "dp2-tp2", "dp1-tp4"))


@dataclass(frozen=True)
class TableModel:
    """Costs from tables: layers of few classes, with ties between the first layer and the last."""

    classes: tuple[int, ...]
    costs: dict[tuple[int, Strategy], LayerCost]
    conversions: dict[tuple[Strategy, Strategy], float]
    boundary: dict[Strategy, float]
    shared: float
    tied: bool

    def kinds(self) -> tuple[object, ...]:
        last = len(self.classes) - 1
        return tuple((c, self.tied and i == last and last > 0) for i, c in enumerate(self.classes))

    def layer(self, index: int, strategy: Strategy, micro_batch: int) -> LayerCost:
        cost = self.costs[self.classes[index], strategy]
        if self.kinds()[index][1]:  # type: ignore[index]
            return LayerCost(**{**vars(cost), "ties": (Tie(0, cost.state_bytes / 2, cost.sync_s / 2, 0.0, 3.0),)})
        return cost

    def conversion_s(self, index: int, before: Strategy, after: Strategy, micro_batch: int) -> float:
        return 0.0 if before == after else self.conversions[before, after]

    def boundary_bytes(self, index: int, strategy: Strategy, micro_batch: int) -> float:
        return self.boundary[strategy] if index < len(self.classes) else 0.0

    def transfer_s(self, index: int, strategy: Strategy, micro_batch: int) -> float:
        return self.boundary[strategy] / 4

    def shared_bytes(self, strategy: Strategy, micro_batch: int) -> float:
        return self.shared


small = st.integers(0, 12).map(float)


@st.composite
def models(draw: st.DrawFn) -> TableModel:
    kinds = draw(st.integers(1, 2))
    classes = tuple(draw(st.lists(st.integers(0, kinds - 1), min_size=1, max_size=5)))
    costs = {
        (kind, strategy): LayerCost(
            forward_s=draw(small) + 1,
            backward_s=draw(small),
            saved_bytes=draw(small),
            extra_bytes=draw(small),
            state_bytes=draw(small),
            sync_s=draw(small),
            update_s=draw(small),
        )
        for kind in range(kinds)
        for strategy in STRATEGIES
    }
    conversions = {pair: draw(small) for pair in itertools.permutations(STRATEGIES, 2)}
    boundary = {s: draw(small) for s in STRATEGIES}
    return TableModel(classes, costs, conversions, boundary, draw(small), draw(st.booleans()))


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
