"""The pass `search` on a small program: it fits, it says what estimate says, and it explains when nothing fits."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest

from galvatron.costs.estimate import cost_model, estimate_plan, setting_of, workspace_bytes
from galvatron.costs.objective import Setting, evaluate_plan, peak_bytes
from galvatron.errors import BudgetError, GalvatronError, PlanError
from galvatron.ir.cluster import Cluster
from galvatron.ir.plan import Plan
from galvatron.ir.planned import check, resolve, with_ties
from galvatron.ir.program import Form, Program
from galvatron.passes.planning.enumerate_strategies import EnumerateStrategies
from galvatron.passes.planning.prune import Prune
from galvatron.passes.planning.search import Search
from tests.ir.programs import costed


def cluster(text: str) -> Cluster:
    """A preset on which all memory is that of tensors: the model has a few KiB."""
    found = Cluster.parse(text)
    return replace(found, device=replace(found.device, workspace_bytes=0))


PLAIN = EnumerateStrategies(roles=("dp", "tp"), zero=(0,), recompute=("none",))


@pytest.fixture(scope="module")
def candidates() -> Program:
    program = replace(costed(), cluster=cluster("a100-80g:1x4"), batch_size=16)
    return Prune(heuristics=False).run(PLAIN.run(program))


def searched(program: Program, **options: object) -> Plan:
    result = Search(**options).run(program)  # type: ignore[arg-type]  # options of several types
    assert result.form is Form.PLANNED and result.plan is not None
    return result.plan


def test_the_plan_can_run_and_says_what_estimate_says(candidates: Program) -> None:
    plan = searched(candidates)
    check(plan, candidates, 4, 16)
    step_time_s, stages = estimate_plan(candidates, plan)
    assert plan.step_time_s == step_time_s
    assert plan.peak_bytes == peak_bytes(setting_of(candidates, plan), stages)
    assert plan.cluster == "a100-80g:1x4"


@pytest.mark.parametrize("memory", [20_000, 12_000, 9_000])
def test_no_uniform_plan_that_fits_is_faster(candidates: Program, memory: int) -> None:
    try:
        plan = searched(candidates, memory=memory, gap=0.0)
    except BudgetError:
        best_s = 0.0
    else:
        assert plan.peak_bytes is not None and max(plan.peak_bytes) <= memory
        best_s = plan.step_time_s or 0.0
    model = cost_model(candidates)
    for degrees in ("pp1/{}/1f1b/dp4", "pp1/{}/1f1b/dp2-tp2", "pp1/{}/1f1b/tp4", "pp2/{}/gpipe/dp2", "pp4/{}/1f1b/dp1"):
        for count in (4, 8, 16):
            try:
                uniform = resolve(candidates, degrees.format(f"m{count}"), 16, 4)
            except PlanError:
                continue
            step_time_s, stages = estimate_plan(candidates, uniform, model=model)
            if max(stage.peak_bytes for stage in stages) <= memory:
                assert best_s and step_time_s >= best_s * (1 - 1e-9)


@pytest.mark.slow
@pytest.mark.one_in(4)
@pytest.mark.parametrize(
    ("devices", "zero", "memory"), [(4, (0,), None), (4, (0,), 30_000), (2, (0, 3), 48_000), (2, (0, 3), 36_000)]
)
def test_no_plan_that_fits_is_faster(devices: int, zero: tuple[int, ...], memory: int | None) -> None:
    """The first and the last layer share a table: every mixture, and every way to keep the table."""
    program = replace(costed(), cluster=cluster(f"a100-80g:1x{devices}"), batch_size=16)
    program = replace(PLAIN, pipeline_degrees=(1,), zero=zero).run(program)
    options = program.candidates[0].strategies
    plan = searched(program, memory=memory, micro_batches=2, gap=0.0)
    model, setting = cost_model(program), Setting(16, 2, "1f1b", 1)
    best_s = float("inf")
    for strategies in itertools.product(options, repeat=len(plan.strategies)):
        told = with_ties(replace(plan, ties=(), stages=(strategies,)), model.tied()).ties
        for ties in {told, tuple((name, None) for name, _ in told)}:
            step_time_s, (stage,) = evaluate_plan(model, replace(setting, ties=ties), [strategies])
            if memory is None or stage.peak_bytes <= memory:
                best_s = min(best_s, step_time_s)
    assert plan.step_time_s == pytest.approx(best_s, rel=1e-12)


def test_options_are_kept(candidates: Program) -> None:
    assert searched(candidates, schedule="gpipe").schedule == "gpipe"
    assert searched(candidates, micro_batches=4).micro_batches == 4
    assert searched(candidates, global_batch=32).global_batch_size == 32


def test_more_ties_than_can_be_tried_are_kept_whole(candidates: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = searched(candidates, whole_ties=True)
    assert whole.ties == (("embed.weight", None),) and whole.search.space.endswith("ties kept whole")
    assert "ties" not in searched(candidates).search.space
    monkeypatch.setattr("galvatron.ir.limits.WAYS", 1)
    assert searched(candidates) == whole


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "1f1b,zbw"}, "unknown schedule 'zbw'; did you mean 'zbv'"),
        ({"schedule": "1f2b"}, "unknown schedule '1f2b'; did you mean '1f1b'"),
        ({"micro_batches": 0}, "option 'micro-batches': must be from 1 to 100000, not 0"),
        ({"global_batch": 0}, "option 'global-batch': must be from 1 to "),
        ({"global_batch": -4}, "option 'global-batch': must be from 1 to "),
        ({"memory": 0}, "option 'memory': must be from 1 to "),
        ({"gap": -1.0}, "option 'gap': must be at least 0 and less than 1, not -1.0"),
        ({"gap": float("nan")}, "option 'gap': must be at least 0 and less than 1, not nan"),
    ],
)
def test_options_that_cannot_be_are_refused(candidates: Program, options: dict[str, object], message: str) -> None:
    with pytest.raises(GalvatronError, match=message):
        searched(candidates, **options)


def test_a_gap_is_kept(candidates: Program) -> None:
    best, near = searched(candidates, memory=20_000, gap=0.0), searched(candidates, memory=20_000, gap=0.1)
    assert best.step_time_s is not None and near.step_time_s is not None
    assert best.step_time_s * (1 - 1e-9) <= near.step_time_s <= best.step_time_s / (1 - 0.1)


def test_nothing_fits_names_the_nearest_miss(candidates: Program) -> None:
    with pytest.raises(BudgetError, match=r"no plan fits .* \(100 bytes\)") as error:
        searched(candidates, memory=100)
    message = str(error.value)
    assert "in stage" in message and "bytes (" in message and "over; give more memory" in message
    assert message.endswith("ZeRO (such as dp2-zero3) or recomputation (such as dp2-recompute)")


def test_a_miss_is_looked_for_among_few_plans(candidates: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pricing a plan of every choice takes longer than the search itself."""
    looked_at = list[float]()

    def evaluated(*given: Any) -> Any:
        found = evaluate_plan(*given)
        looked_at.append(max(peak_bytes(given[1], found[1])))
        return found

    monkeypatch.setattr("galvatron.passes.planning.search.misses.evaluate_plan", evaluated)
    with pytest.raises(BudgetError, match=r"no plan fits") as error:
        searched(candidates, memory=100)
    assert 1 < len(looked_at) <= 4
    assert f"{min(looked_at) - 100} bytes" in str(error.value)


def test_a_miss_names_only_what_was_not_searched() -> None:
    program = replace(costed(), cluster=Cluster.parse("a100-80g:1x2"), batch_size=8)
    options = replace(PLAIN, roles=("dp",), pipeline_degrees=(1,), zero=(0, 3))
    with pytest.raises(BudgetError, match=r"what was not searched: recomputation \(such as dp2-recompute\)$"):
        searched(Prune(heuristics=False).run(options.run(program)), memory=workspace_bytes(program) + 100)


def test_a_batch_that_no_strategy_divides() -> None:
    program = replace(costed(), cluster=Cluster.parse("a100-80g:1x4"), batch_size=3)
    only_dp = replace(PLAIN, roles=("dp",), pipeline_degrees=(1,)).run(program)
    with pytest.raises(PlanError, match="3 samples cannot be divided over 4 devices"):
        Search().run(Prune().run(only_dp))
