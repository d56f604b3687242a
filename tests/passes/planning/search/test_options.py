"""What a search is told: constraints, what is to be least, and when it has to end."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import pytest

from galvatron.costs.estimate import cost_model
from galvatron.errors import PassError, PlanError, StrategyError
from galvatron.ir.plan import Plan
from galvatron.ir.planned import check
from galvatron.ir.program import Program
from galvatron.passes.planning.enumerate_strategies import EnumerateStrategies
from galvatron.passes.planning.prune import Prune
from galvatron.passes.planning.search import Search, watch
from galvatron.passes.planning.search.watch import Progress, listening
from tests.ir.programs import costed
from tests.passes.planning.search.test_search import cluster

SPACE = EnumerateStrategies(roles=("dp", "tp"), zero=(0, 3), recompute=("none", "full"))


@pytest.fixture(scope="module")
def candidates() -> Program:
    program = replace(costed(), cluster=cluster("a100-80g:1x4"), batch_size=16)
    return Prune(heuristics=False).run(SPACE.run(program))


def searched(program: Program, **options: object) -> Plan:
    return Search(**options).run(program).required_plan  # type: ignore[arg-type]  # options of several types


def test_each_layer_has_what_is_required_of_it(candidates: Program) -> None:
    names = [layer.name for layer in candidates.planned_layers]
    plan = searched(candidates, require=(f"{names[1]}=tp2-zero3", "recompute"), forbid=(f"{names[0]}=tp",))
    check(plan, candidates, 4, 16)
    assert plan.strategies[1].degree("tp") == 2 and plan.strategies[1].zero == 3
    assert plan.strategies[0].degree("tp") == 1
    assert all(strategy.recompute == "full" for strategy in plan.strategies)
    assert "recompute required" in plan.search.space


def test_a_constraint_costs_no_less(candidates: Program) -> None:
    free, bound = searched(candidates, gap=0.0), searched(candidates, gap=0.0, require=("tp4",))
    assert (free.step_time_s or 0.0) <= (bound.step_time_s or 0.0)
    assert searched(candidates, gap=0.0, forbid=("tp>4",)).step_time_s == free.step_time_s


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"require": ("tq2",)}, StrategyError, "unknown trait 'tq2'"),
        ({"require": ("nowhere=tp2",)}, PlanError, "the program has no layer 'nowhere'"),
        ({"require": ("tp2",), "forbid": ("tp",)}, PlanError, r"none of \d+ strategies on 4 devices is left \(tp2 req"),
        ({"micro_batches": 3}, PlanError, "16 samples cannot be cut into 3 micro-batches"),
        ({"objective": "speed"}, PassError, "'speed' is not a choice"),
        ({"time_limit_s": 0.0}, PassError, "must be a positive number of seconds"),
        ({"time_limit_s": math.inf}, PassError, "must be a positive number of seconds"),
    ],
)
def test_what_cannot_be_is_refused(
    candidates: Program, options: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        searched(candidates, **options)


def test_a_pipeline_degree_that_cannot_be_is_the_cause(candidates: Program) -> None:
    with pytest.raises(PlanError, match="no pipeline degree that is asked for divides 4 devices"):
        searched(replace(candidates, candidates=()))


@pytest.mark.slow
def test_the_least_memory_is_that_below_which_nothing_fits(candidates: Program) -> None:
    plan = searched(candidates, objective="memory")
    assert plan.peak_bytes is not None
    most = max(plan.peak_bytes)
    assert most <= plan.search.budget_bytes
    with pytest.raises(PlanError, match="no plan fits"):
        searched(candidates, memory=int(most * (1 - 2 / 1024)))
    again = searched(candidates, memory=plan.search.budget_bytes)
    assert again.step_time_s == pytest.approx(plan.step_time_s, rel=2 / 1024)


def test_a_plan_says_what_is_proven_of_it(candidates: Program) -> None:
    plan = searched(candidates, memory=40_000, schedule="1f1b")
    found = plan.search
    assert found.budget_bytes == 40_000 and plan.step_time_s is not None
    assert 0 <= found.gap <= 1 / 1024 + 1e-9
    assert found.bound_s == pytest.approx(plan.step_time_s * (1 - found.gap))
    assert found.space.startswith("pp 1, 2, 4; ") and "ZeRO 0, 3; recomputation none, full" in found.space
    assert Plan.from_json(plan.to_json()) == plan


def test_listeners_are_told_what_is_found(candidates: Program) -> None:
    told: list[Progress] = []
    with listening(told.append):
        plan = searched(candidates)
    assert [p.costed for p in told] == sorted(p.costed for p in told)
    bounds, best = [p.bound_s for p in told], [p.best_s for p in told]
    assert bounds == sorted(bounds) and best == sorted(best, reverse=True)
    assert best[-1] == pytest.approx(plan.step_time_s)


def test_an_interrupted_search_gives_the_best_so_far(candidates: Program) -> None:
    def interrupt(progress: Progress) -> None:
        if progress.best_s < math.inf:
            raise KeyboardInterrupt

    best = searched(candidates, gap=0.0)
    with listening(interrupt):
        plan = searched(candidates, gap=0.0)
    check(plan, candidates, 4, 16)
    assert plan.step_time_s is not None and best.step_time_s is not None
    assert plan.search.bound_s <= best.step_time_s <= plan.step_time_s
    assert plan.search.gap == pytest.approx(1 - plan.search.bound_s / plan.step_time_s)


def test_an_interrupt_before_anything_is_found_goes_on(candidates: Program) -> None:
    def interrupt(progress: Progress) -> None:
        raise KeyboardInterrupt

    with listening(interrupt), pytest.raises(KeyboardInterrupt):
        searched(candidates)


def test_a_time_limit_that_is_too_short_says_so(candidates: Program) -> None:
    cost_model(candidates)
    with pytest.raises(PlanError, match=r"time limit of 1e-06 s was over before any plan was found"):
        searched(candidates, time_limit_s=1e-6)
    assert searched(candidates, time_limit_s=600.0) == searched(candidates)


def test_a_time_limit_holds_in_any_thread(candidates: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(watch, "time", clock)

    def pass_time(progress: Progress) -> None:
        if progress.best_s < math.inf:
            clock.now = 61.0

    def limited() -> Plan:
        with listening(pass_time):
            return searched(candidates, time_limit_s=60.0)

    with ThreadPoolExecutor(1) as others:
        plan = others.submit(limited).result()
    check(plan, candidates, 4, 16)
    assert not plan.search.complete and 0 < plan.search.gap < 1
