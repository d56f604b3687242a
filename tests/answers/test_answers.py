"""What is told about plans, held to what searching again finds."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

import pytest

from galvatron.answers.alternatives import alternatives, why_not
from galvatron.answers.batches import doubling, most_throughput
from galvatron.answers.curve import curve, read_budgets
from galvatron.answers.diff import differences
from galvatron.answers.explain import GIB, explain
from galvatron.answers.question import Question, seconds_of
from galvatron.answers.ways_out import shared_state_bytes, ways_out
from galvatron.costs.estimate import estimate_plan
from galvatron.errors import BudgetError, ClusterError, GalvatronError, PlanError, StrategyError
from galvatron.forms import searched, with_costs
from galvatron.ir.plan import Plan
from galvatron.ir.planned import fitted, resolve
from galvatron.ir.program import Program
from galvatron.search_options import SearchOptions
from tests.ir.programs import costed
from tests.passes.planning.search.test_search import cluster

MACHINES = cluster("a100-80g:1x4")
OPTIONS = SearchOptions(roles=("dp", "tp"), zero=(0, 3), recompute=("none", "full"))
TIGHT = 20_000


@pytest.fixture(scope="module")
def program() -> Program:
    return _program()


@cache
def _program() -> Program:
    return with_costs(costed(), MACHINES, 16)


@cache
def _best(memory_bytes: int) -> Plan:
    return searched(_program(), memory_bytes, OPTIONS).required_plan


def question(program: Program, memory_bytes: int = TIGHT, plan: Plan | None = None) -> Question:
    own = plan or _best(memory_bytes)
    return Question.about(program, own, MACHINES, memory_bytes, OPTIONS)


def test_a_plan_without_a_budget_of_its_own_is_asked_about_under_that_of_the_cluster(program: Program) -> None:
    plan = resolve(program, "m4/dp4", 16, 4)
    assert Question.about(program, plan, MACHINES).memory_bytes == MACHINES.default_budget_bytes
    found = _best(TIGHT)
    assert Question.about(program, found, MACHINES).memory_bytes == TIGHT


def test_an_explanation_says_what_the_step_is_made_of(program: Program) -> None:
    asked = question(program)
    told = explain(asked)
    assert told.step_time_s == pytest.approx(seconds_of(asked.plan))
    assert sum(seconds for _, seconds in told.critical_parts) == pytest.approx(told.step_time_s)
    assert sum(own.layers for own in told.classes) == len(program.planned_layers)
    assert all(0 < used <= 1 for used in told.used)


def test_what_limits_a_plan_is_what_a_rank_does_and_not_what_it_waits_for(program: Program) -> None:
    told = explain(question(program, 10 * GIB, plan=resolve(program, "pp2/m4/zbv/dp1-tp2", 16, 4)))
    parts = dict(told.critical_parts)
    assert told.binding in parts.keys() - {"bubble"} and "others" not in parts
    assert sum(parts.values()) == pytest.approx(told.step_time_s)


def test_one_strategy_for_all_layers_is_asked_about_beside_a_plan(program: Program) -> None:
    first = Question.asked(program, resolve(program, "m4/dp4", 32, 4), MACHINES)
    assert first.plan.global_batch_size == 32
    other = Question.asked(program, "m2/dp4", other=replace(first.plan, cluster="a100-80g:1x4"))
    assert (other.plan.global_batch_size, other.plan.micro_batches, other.plan.world_size) == (32, 2, 4)
    assert Question.asked(program, "m2/dp4", MACHINES).plan.global_batch_size == 16
    with pytest.raises(ClusterError, match="m2/dp4 says no cluster"):
        Question.asked(program, "m2/dp4")


def test_a_plan_for_another_batch_loses_what_was_predicted(program: Program) -> None:
    plan = _best(TIGHT)
    assert fitted(plan, program, 4, 16) == plan
    twice = fitted(plan, program, 4, 32)
    assert (twice.global_batch_size, twice.step_time_s, twice.search.space) == (32, None, "")


def test_where_nothing_fits_an_explanation_says_so(program: Program) -> None:
    with pytest.raises(BudgetError, match="no plan fits 1 B"):
        explain(question(program, 1, plan=resolve(program, "m4/dp4", 16, 4)))


@pytest.mark.slow
@pytest.mark.parametrize("memory_bytes", [9_000, TIGHT, 10 * GIB])
def test_what_more_would_buy_is_what_searching_finds(program: Program, memory_bytes: int) -> None:
    asked = question(program, memory_bytes)
    told = explain(asked)
    assert told.one_more_gib.step_time_s == seconds_of(asked.searched(memory_bytes=memory_bytes + GIB))
    assert 0 <= told.one_more_gib.told_s <= told.step_time_s
    links = asked.searched(cluster=MACHINES.with_twice_the_bandwidth())
    assert told.twice_the_bandwidth.step_time_s == seconds_of(links) <= told.best_s * (1 + 1 / 512)


def test_memory_that_is_plenty_is_worth_nothing(program: Program) -> None:
    told = explain(question(program, 10 * GIB))
    assert told.multipliers is not None and max(told.multipliers) == 0 == told.one_more_gib.told_s
    assert not told.binding.startswith("memory")


def test_a_plan_that_is_not_the_best_is_told_so(program: Program) -> None:
    slow = resolve(program, "m4/dp1-tp4", 16, 4)
    told = explain(question(program, 10 * GIB, slow))
    assert told.best_s < told.step_time_s


def test_why_not(program: Program) -> None:
    asked = question(program)
    told = why_not(asked, "tp4")
    assert told.plan is not None and all(s.degree("tp") == 4 for s in told.plan.strategies)
    assert told.more_s == pytest.approx(seconds_of(told.plan) - seconds_of(asked.best)) and told.more_s >= 0
    assert why_not(asked, "dp<=4").more_s == pytest.approx(0)


def test_why_not_names_the_rule(program: Program) -> None:
    two_nodes = with_costs(costed(), cluster("a100-80g:2x2"), 16)
    plan = searched(two_nodes, TIGHT, OPTIONS).required_plan
    told = why_not(Question.about(two_nodes, plan, cluster("a100-80g:2x2"), TIGHT, OPTIONS), "tp4")
    assert told.plan is None and "required" in told.refusal
    ((rule, count, reason),) = told.cuts
    assert rule == "tp-stays-in-node" and count > 0 and "cross nodes" in reason


def test_why_not_refuses_what_is_no_question(program: Program) -> None:
    with pytest.raises(StrategyError, match="unknown trait"):
        why_not(question(program), "tq4")
    with pytest.raises(PlanError, match="no layer 'nowhere'"):
        why_not(question(program), "nowhere=tp4")


@pytest.mark.slow
def test_alternatives_are_the_best_of_each_way_to_cut(program: Program) -> None:
    asked = question(program)
    found = alternatives(asked, 4)
    times = [seconds_of(plan) for plan in found]
    assert len(found) == 4 and times == sorted(times)
    assert times[0] == pytest.approx(seconds_of(asked.best), rel=1 / 512)
    ways = {(plan.pipeline_degree, plan.micro_batches) for plan in found}
    assert len(ways) == len(found)
    for degree, count in ways:
        own = replace(OPTIONS, pipeline_degree=degree, micro_batches=count)
        best = seconds_of(searched(program, TIGHT, own).required_plan)
        assert min(abs(best - seconds) for seconds in times) <= best / 512


def test_plans_differ_in_what_they_say(program: Program) -> None:
    names = [layer.name for layer in program.planned_layers]
    first, second = (resolve(program, text, 16, 4) for text in ("m4/dp4", "m2/dp2-tp2"))
    told = {own.what: (own.first, own.second) for own in differences(first, second, names)}
    assert told["micro-batches"] == ("4", "2")
    assert told[f"{names[0]} … {names[-1]} ({len(names)})"] == ("stage 0: dp4", "stage 0: dp2-tp2")
    assert not differences(first, first, names)
    uneven = {own.what: (own.first, own.second) for own in differences(first, replace(first, skew=1.5), names)}
    assert uneven == {"rows of the fullest rank over the mean": ("none choose", "1.5")}
    one = replace(first, stages=((second.strategies[0], *first.strategies[1:]),))
    assert [own.what for own in differences(first, one) if own.what.startswith("layer")] == ["layer 0"]


@pytest.mark.parametrize(
    ("text", "budgets"),
    [("36GiB", [36 * GIB]), ("12..16GiB", [12 * GIB + GIB // 2 * i for i in range(9)]), ("1024MiB..2GiB", None)],
)
def test_budgets(text: str, budgets: list[int] | None) -> None:
    found = read_budgets(text)
    assert list(found) == budgets or (budgets is None and (found[0], found[-1]) == (GIB, 2 * GIB))


@pytest.mark.parametrize("text", ["16..12GiB", "0..1GiB", "..", "1GiB..", "a..b"])
def test_what_is_no_range_of_budgets(text: str) -> None:
    with pytest.raises(GalvatronError):
        read_budgets(text)


def test_a_curve_falls(program: Program) -> None:
    found = curve((100, 9_000, TIGHT, GIB), _best)
    assert found[0] == (100, None)
    times = [seconds_of(plan) if plan else math.inf for _, plan in found]
    assert all(later <= earlier * (1 + 1 / 512) for earlier, later in zip(times, times[1:], strict=False))


def test_batches_double() -> None:
    assert doubling(8, 128) == (8, 16, 32, 64, 128) and doubling(6, 20) == (6, 12, 20) and doubling(5, 5) == (5,)
    with pytest.raises(GalvatronError, match="a range of global batches"):
        doubling(9, 8)


def test_the_batch_with_most_throughput(program: Program) -> None:
    def best(batch: int) -> Plan:
        return searched(with_costs(program, MACHINES, batch), GIB, OPTIONS).required_plan

    found = most_throughput((4, 8, 16), best)
    rates = {size: size / seconds_of(best(size)) for size in (4, 8, 16)}
    assert found.global_batch_size == max(rates, key=rates.__getitem__)


@pytest.mark.parametrize("text", ["m1/dp4-zero3", "m4/dp2-tp2-zero3-recompute", "pp2/m4/dp2-zero3", "pp4/m4/dp1"])
def test_no_device_holds_less_state_than_its_share(program: Program, text: str) -> None:
    """So that no smaller batch is tried where that is too much already."""
    stages = estimate_plan(program, resolve(program, text, 16, 4))[1]
    assert 0 < shared_state_bytes(program) <= max(stage.state_bytes for stage in stages)


@pytest.mark.slow
def test_ways_out_are_plans_that_fit(program: Program) -> None:
    narrow = replace(OPTIONS, pipeline_degree=1, micro_batches=1)
    least = searched(program, GIB, replace(narrow, objective="memory")).required_plan.search.budget_bytes
    budget = int(least * 0.98)
    with pytest.raises(BudgetError):
        searched(program, budget, narrow)
    found = ways_out(program, budget, narrow)
    assert 1 <= len(found) <= 3
    for way in found:
        assert way.plan.peak_bytes is not None
        more = "per device" in way.change
        assert (max(way.plan.peak_bytes) > budget) == more, way
    assert found[0].change == "without pipeline_degree=1" or found[0].change == "without micro_batches=1"
