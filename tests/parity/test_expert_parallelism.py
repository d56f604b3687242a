"""Expert parallelism: an axis whose ranks have samples and experts of their own, beside every other role."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from galvatron.costs.estimate import estimate_plan
from galvatron.errors import VerifyError
from galvatron.forms import lowered
from galvatron.ir.collectives import is_started, sent_by
from galvatron.ir.planned import PlanShorthand
from galvatron.ir.program import Program
from galvatron.ir.text import parse_program, print_program
from galvatron.ir.verify import verify
from galvatron.passes.pipeline import Pipeline
from galvatron.passes.planning.enumerate_strategies import EnumerateStrategies
from tests import models
from tests.checkpoints.test_resharding import AFTER, BEFORE, loads_and_goes_on, saves_and_goes_on
from tests.marks import some_slow
from tests.parity.harness import BATCH_SIZE, check, check_program, eager, job_of, planned, subject
from tests.parity.test_evaluation import evaluate
from tests.parity.test_random_plans import COMMON, ROLES, one_example
from tests.ranks import run_ranks

PLANS = [
    "m2/dp2-ep2", "m1/ep2", "m2/ep4", "m2/ep2-zero1", "m2/dp2-ep2-zero2", "m1/ep2-tp2", "m1/ep2-tp2+sp", "m1/tp2-ep2",
    "m2/ep2-ulysses2", "m1/ep2-cp2-zero1", "m1/cp2-ep2", "pp2/m2/1f1b/ep2-zero3-recompute", "pp2/m4/zbv/ep2",
    "m2/ep2-recompute=selective", "m2/ep2-recompute=alternate", "m2/ep2-recompute=attention", "m2/ep4-zero3",
]  # fmt: skip


@pytest.mark.parametrize(
    ("family", "plan"),
    some_slow([("mixtral", PLANS[0])], [(family, plan) for family in ("mixtral", *models.EXPERTS) for plan in PLANS]),
)
def test_equals_eager(family: str, plan: str) -> None:
    check(f"{family}-batched_mm", plan)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@settings(max_examples=200, phases=(Phase.reuse, Phase.generate, Phase.shrink), **COMMON)
@given(st.data())
def test_random_plans_equal_eager(data: st.DataObject) -> None:
    one_example(data, [f"{family}-batched_mm" for family in ("mixtral", *models.EXPERTS)], (*ROLES, "ep"))


MODEL = "mixtral-batched_mm"


@pytest.mark.slow
@pytest.mark.parametrize("plan", ["m2/dp2-ep2", "pp2/m2/1f1b/ep2-zero1"])
def test_with_a_head_that_is_the_embedding(plan: str) -> None:
    check("mixtral-tied", plan)


@pytest.mark.slow
@pytest.mark.parametrize("samples", [BATCH_SIZE, 8])
@pytest.mark.parametrize("plan", ["m2/dp2-ep2", "pp2/m2/1f1b/ep2-recompute"])
def test_evaluation(plan: str, samples: int) -> None:
    batch = subject(MODEL).batch(samples, 1)
    expected = eager(MODEL, batch).loss
    for loss in run_ranks(evaluate, 4, job_of(MODEL, planned(MODEL, plan)), batch):
        assert abs(loss - expected) <= 1e-9 * abs(expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "second"),
    [("m2/dp2-ep2", "m2/dp4-zero1"), ("m2/dp2-tp2-zero3", "m2/ep4"), ("m2/ep2-tp2-zero2", "pp2/m4/1f1b/ep2")],
)
def test_a_run_goes_on_under_another_plan(first: str, second: str, tmp_path: Path) -> None:
    steps = [subject(MODEL).batch(BATCH_SIZE, seed) for seed in range(BEFORE + AFTER)]
    jobs = [job_of(MODEL, planned(MODEL, plan)) for plan in (first, second)]
    wanted, state = run_ranks(saves_and_goes_on, 4, jobs[0], steps, str(tmp_path), timeout=240)[0]
    for ((losses, found),) in run_ranks(loads_and_goes_on, 4, jobs[1], steps, [str(tmp_path)], timeout=240):
        assert losses == pytest.approx(wanted, rel=1e-12)
        for name, value in state.items():
            assert (found[name] - value).norm() <= 1e-12 * value.norm().clamp_min(1e-12), name


def layer() -> str:
    """A program whose experts are on two ranks."""
    return print_program(lowered(planned("mixtral-batched_mm", "m1/ep2", 2)))


def test_rows_go_to_their_experts_once() -> None:
    text = layer()
    experts = text.count("spmd.grouped_linear")
    assert experts == 2 * text.count("comm.dispatch(") == 2 * text.count("comm.combine(") > 0
    assert all("routed=true" in line for line in text.splitlines() if "spmd.grouped_linear" in line)


def at_once(program: Program) -> Program:
    """A planned program on a cluster where nothing takes a while to begin, so that slices pay however small they are:
    rows are summed up into them where they come from experts, and go on in them."""
    cluster = program.required_cluster
    levels = tuple(replace(level, latency_s=1e-8) for level in cluster.levels)
    device = replace(cluster.device, kernel_launch_s=1e-9)
    return replace(program, cluster=replace(cluster, device=device, levels=levels))


ROWS_IN_SLICES = "m1/tp2+sp-ep2"
"""Rows are sent to experts whole on `tp`, and again behind these in slices of it."""


def layouts_sent_by(sharded: Program) -> int:
    """In how many layouts there is something that rows are sent by, in the class that has most."""
    graphs = [cls.graph for cls in sharded.classes]
    return max(len({graph.values[name].layout for op in graph.ops for name in sent_by(op)}) for graph in graphs)


@pytest.mark.parametrize("overlap", some_slow([False], [True]))
def test_rows_that_are_sent_in_two_layouts_equal_eager(overlap: bool) -> None:
    """Each time by what is cut as they are."""
    program = at_once(planned(MODEL, ROWS_IN_SLICES, overlap=overlap))
    assert layouts_sent_by(Pipeline.of(("shard",)).run(program)) == 2
    check_program(MODEL, program, subject(MODEL).batch(program.batch_size, 1))


def test_rows_that_are_sent_alike_choose_among_as_many() -> None:
    """Also where they are sent by what no op of experts reads."""
    text = print_program(Pipeline.of(("shard",)).run(at_once(planned(MODEL, ROWS_IN_SLICES))))
    verify(parse_program(text))
    assert text.count("by=%reshape_6.slice, size=4") > 1
    with pytest.raises(VerifyError, match="size must be 4, as of comm.dispatch"):
        verify(parse_program(text.replace("by=%reshape_6.slice, size=4", "by=%reshape_6.slice, size=2", 1)))


@pytest.mark.slow
@pytest.mark.parametrize("cluster", [lambda program: program, at_once], ids=["begins", "at-once"])
@pytest.mark.parametrize("world_size", [4, 8])
@pytest.mark.parametrize("family", ["mixtral", "deepseek-v3"])
def test_every_strategy_is_verified(family: str, world_size: int, cluster: Callable[[Program], Program]) -> None:
    name, space = f"{family}-batched_mm", EnumerateStrategies(zero=(0,), recompute=("none",))
    for strategy in (one for one in space.leaves_of(world_size) if "ep" in one.roles):
        verify(Pipeline.of(("shard",)).run(cluster(planned(name, f"m1/{strategy}", world_size))))


def started(program: Program) -> list[str]:
    """The collectives that are under way for a while."""
    return [op.result.name for cls in lowered(program).classes for op in cls.graph.ops if is_started(op)]


BESIDE = [
    "m2/ep2", "m2/ep2-recompute", "m2/ep2-recompute=selective", "m1/ep2-tp2", "m2/ep2-zero3", "m1/ep2-ulysses2",
    "pp2/m4/zbv/ep2", "pp2/m2/1f1b/ep2-zero1",
]  # fmt: skip


@pytest.mark.parametrize(
    ("family", "plan"), some_slow([], [(family, plan) for family in ("qwen2-moe", "deepseek-v3") for plan in BESIDE])
)
def test_messages_beside_shared_experts_change_no_result(family: str, plan: str) -> None:
    name, world_size = f"{family}-batched_mm", PlanShorthand.parse(plan).world_size
    program = planned(name, plan, world_size, overlap=True)
    assert any("dispatch" in value for value in started(program))
    check_program(name, program, subject(name).batch(program.batch_size, 1))
    without = planned(name, plan, world_size)
    assert not started(without)
    assert estimated_s(program) < estimated_s(without)


def estimated_s(program: Program) -> float:
    return estimate_plan(program, program.required_plan)[0]


WRONG = {
    "not sent": ("spmd.grouped_linear(%repeat_interleave.dispatch,", "spmd.grouped_linear(%repeat_interleave,"),
    "not put back": ("aten.mul.Tensor(%grouped_linear_1.combine,", "aten.mul.Tensor(%grouped_linear_1,"),
    "sent by something else": ("%mlp.experts.down_proj, %reshape_6, axis", "%mlp.experts.down_proj, %topk_1, axis"),
    "sent among others": ("dim=0, outer=1, by=%reshape_6, size=4", "dim=0, outer=1, by=%reshape_6, size=2"),
    "as if all were there": (', axis="ep", size=4, routed=true)', ', axis="ep", size=4)'),
}


@pytest.mark.parametrize("old, new", WRONG.values(), ids=WRONG)
def test_rows_elsewhere_than_their_experts_are_refused(old: str, new: str) -> None:
    text = layer()
    assert old in text
    with pytest.raises(VerifyError):
        verify(parse_program(text.replace(old, new, 1)))
