"""The search against brute force over every plan, on random cost tables."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from operator import contains
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from galvatron.costs.model import LayerCost
from galvatron.costs.objective import Setting, StageReport, evaluate_plan, memory_of_ranks
from galvatron.costs.sharing import Pace
from galvatron.ir.curves import Points
from galvatron.ir.plan import Ties
from galvatron.ir.strategy import Strategy
from galvatron.passes.planning.search.fastest import fastest
from galvatron.passes.planning.search.tables import TableBuilder
from galvatron.passes.planning.search.ties import choices_of_ties
from galvatron.passes.planning.search.watch import Watch
from tests.passes.planning.search.tables import STRATEGIES, TableModel, models


def every_plan(model: TableModel, stages: int) -> Iterator[tuple[tuple[Strategy, ...], ...]]:
    layers = len(model.classes)
    for cuts in itertools.combinations(range(1, layers), stages - 1):
        edges = list(itertools.pairwise((0, *cuts, layers)))
        for choice in itertools.product(STRATEGIES, repeat=layers):
            yield tuple(choice[a:b] for a, b in edges)


def every_way(model: TableModel, strategies: tuple[Strategy, ...]) -> Iterator[Ties]:
    """The ways to keep the ties of a plan: whole, or as all layers would keep them if they keep them alike."""
    found = [{strategies[i].keeping for i in layers} for layers in model.shares]
    for kept in itertools.product(*({None, *keeping} if len(keeping) == 1 else {None} for keeping in found)):
        yield tuple(zip(model.tied(), kept, strict=True))


def bytes_of(report: StageReport) -> float:
    """The peak memory of a stage; `peak_bytes` rounds, and tables have half bytes."""
    return report.memory.total


problems = st.tuples(
    models(),
    st.integers(1, 3),
    st.sampled_from([1, 2, 4]),
    st.sampled_from(["gpipe", "1f1b"]),
    st.integers(5, 150),
    st.sampled_from([(), ((1.0, 0.5), (6.0, 1.0)), ((3.0, 0.5), (6.0, 1.0))]),
)


@settings(max_examples=12, deadline=None)
@given(problems)
def test_finds_the_optimum_of_every_plan(problem: tuple[Any, ...]) -> None:
    check_optimum(*problem)


@pytest.mark.parametrize("budget", [15, 21])
def test_what_a_stage_receives_counts_also_where_layers_are_all_alike(budget: int) -> None:
    model = TableModel(
        classes=(0, 0, 0),
        costs={(0, strategy): LayerCost(1.0, 1.0) for strategy in STRATEGIES},
        conversions={(before, after): 0.0 for before in STRATEGIES for after in STRATEGIES if before != after},
        boundary=dict.fromkeys(STRATEGIES, 7.0),
        shared=dict.fromkeys(STRATEGIES, 0.0),
    )
    check_optimum(model, 2, 4, "1f1b", budget, ())


@pytest.mark.slow
@settings(max_examples=500, deadline=None)
@given(problems)
def test_finds_the_optimum_of_every_plan_of_many(problem: tuple[Any, ...]) -> None:
    check_optimum(*problem)


def check_optimum(
    model: TableModel, degree: int, micro_batches: int, schedule: str, budget: int, sharing: Points
) -> None:
    degree = min(degree, len(model.classes))
    setting = Setting(16, micro_batches, schedule, degree, pace=Pace.of(sharing, degree, 6))
    best = float("inf")
    for stages in every_plan(model, degree):
        for ties in every_way(model, tuple(itertools.chain(*stages))):
            step_time_s, reports = evaluate_plan(model, replace(setting, ties=ties), stages)
            if all(bytes_of(r) <= budget for r in reports):
                best = min(best, step_time_s)
    candidates = [STRATEGIES] * len(model.classes)
    found = fastest(TableBuilder.of(model, list(choices_of_ties(model.tied(), setting, candidates))), budget)
    if best == float("inf"):
        assert found is None
        return
    assert found is not None
    assert found[0].ties in every_way(model, tuple(itertools.chain(*found[1])))
    reported, reports = evaluate_plan(model, *found)
    assert reported == pytest.approx(best, rel=1e-12)
    assert all(bytes_of(r) <= budget for r in reports)


def joint_problems(most_layers: int) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.tuples(
        models(layers=(4, most_layers)),
        st.sampled_from([1, 2, 4, 6]),
        st.sampled_from(["interleaved2", "zbv"]),
        st.integers(20, 150),
    )


@settings(max_examples=15, deadline=None)
@given(joint_problems(4))
def test_no_plan_of_stages_that_share_devices_beats_the_bound(problem: tuple[Any, ...]) -> None:
    check_bound(*problem)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(joint_problems(5))
def test_no_plan_of_stages_that_share_devices_beats_the_bound_of_many(problem: tuple[Any, ...]) -> None:
    check_bound(*problem)


def check_bound(model: TableModel, micro_batches: int, schedule: str, budget: int) -> None:
    setting = Setting(48, micro_batches, schedule, 2)
    best_s = float("inf")
    for stages in every_plan(model, 4):
        for ties in every_way(model, tuple(itertools.chain(*stages))):
            own = replace(setting, ties=ties)
            step_time_s, reports = evaluate_plan(model, own, stages)
            if max(memory.total for memory in memory_of_ranks(own, reports)) <= budget:
                best_s = min(best_s, step_time_s)
    watch = Watch()
    choices = list(choices_of_ties(model.tied(), setting, [STRATEGIES] * len(model.classes)))
    found = fastest(TableBuilder.of(model, choices), budget, watch=watch)
    assert watch.bound_s <= best_s * (1 + 1e-9)
    if found is None:  # nothing was found; that nothing fits is what an infinite bound says
        return
    step_time_s, reports = evaluate_plan(model, *found)
    assert step_time_s == watch.best_s >= best_s
    assert max(memory.total for memory in memory_of_ranks(found[0], reports)) <= budget


class Costless(TableModel):
    """Layers that cost nothing under any strategy."""

    def __init__(self, layers: int, shares: tuple[tuple[int, ...], ...]) -> None:
        super().__init__((0,) * layers, {}, {}, {}, {}, shares)

    def layer(self, index: int, strategy: Strategy, micro_batch: int, ties: Ties) -> LayerCost:
        return LayerCost(0.0, 0.0)

    def boundary_bytes(self, index: int, strategy: Strategy, micro_batch: int) -> float:
        return 0.0

    def shared_bytes(self, strategy: Strategy, micro_batch: int, ties: Ties) -> float:
        return 0.0


@pytest.mark.parametrize("shares", [(), ((0, 3),), ((0, 1, 3),), ((0, 2), (1, 3)), ((2,),), ((0, 3), (1, 3))])
def test_every_plan_is_in_one_choice_for_each_way_to_keep_its_ties(shares: tuple[tuple[int, ...], ...]) -> None:
    """Also where a layer has two ties, which it can keep in parts only alike."""
    options = (*STRATEGIES, Strategy.parse("dp1-tp4"))
    model = Costless(4, shares)
    choices = list(choices_of_ties(model.tied(), Setting(16, 1, "gpipe", 1), [options] * 4))
    builders = TableBuilder.of(model, choices)
    apart = [way for builder in builders for way in builder.ways()]
    of_choices, of_ways = ([(builder, allowed(builder)) for builder in each] for each in (builders, apart))
    for plan in itertools.product(options, repeat=4):
        wanted = list(every_way(model, plan))
        settled = [builder.settled((plan,)) for builder, layers in of_choices if all(map(contains, layers, plan))]
        for inside in (
            [setting.ties for setting in settled if setting is not None],
            [way.setting.ties for way, layers in of_ways if all(map(contains, layers, plan))],
        ):
            assert len(inside) == len(wanted) and set(inside) == set(wanted)


def allowed(builder: TableBuilder) -> list[set[Strategy]]:
    """The strategies that each layer may have in the tables of a single stage."""
    chain = builder.free(1e9).chain
    return [
        {builder.strategies[column] for column in np.flatnonzero(row)}
        for row in np.isfinite(chain.total_s)[chain.kinds]
    ]


def test_more_ways_to_keep_ties_than_can_be_tried_are_those_that_keep_all_alike(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each of eight ties is whole or as under one of two strategies."""
    options = [(Strategy.parse("dp2-tp2"), Strategy.parse("dp1-tp4"))] * 16
    setting = Setting(16, 1, "gpipe", 1)

    def kept(ties: int) -> list[list[Strategy | None]]:
        model = Costless(16, tuple((i, i + 1) for i in range(0, 2 * ties, 2)))
        builders = TableBuilder.of(model, list(choices_of_ties(model.tied(), setting, options)))
        apart = [way for builder in builders for way in builder.ways()]
        return [[own for _, own in way.setting.ties] for way in apart]

    assert kept(8) == [[own] * 8 for own in (None, *(s.keeping for s in options[0]))]
    assert len(kept(6)) == 3**6
    monkeypatch.setattr("galvatron.ir.limits.WAYS", 2)
    assert kept(8) == [[None] * 8]
