"""Costs of rows that go to the ranks of what they choose: those of the rank that has most, for how unevenly they do."""

from __future__ import annotations

from dataclasses import replace

import pytest
from common.llama import Llama, Size, batch_of

import galvatron
from galvatron.cli.tables import print_estimate
from galvatron.costs.events import CollectiveCall, launches
from galvatron.costs.profile import profile_graph
from galvatron.errors import GalvatronError, PlanError
from galvatron.forms import with_costs
from galvatron.ir.cluster import Cluster
from galvatron.ir.device import Device
from galvatron.ir.graph import Graph, Op, Ref, Value
from galvatron.ir.layout import Axis
from galvatron.ir.network import Level
from galvatron.ir.plan import Plan
from galvatron.ir.planned import PlanShorthand, with_plan
from galvatron.ir.program import Program
from galvatron.ir.skew import ALL, EVEN, SKEW, most_rows
from galvatron.ir.text import parse_program, print_program
from galvatron.ir.types import LOCAL_BATCH, TensorType
from galvatron.offline import Estimate

ROWS, D, H, MATRICES, RANKS = 8, 4, 6, 4, 2
TP = Axis("tp", RANKS, 1)
CORE = Device("core", 2**30, (("f32", 1e8),), memory_bytes_per_s=1e9, kernel_launch_s=1e-9)
"""So slow that it is not the process that takes the time."""
CLUSTER = Cluster(f"cores:1x{RANKS}", CORE, (Level("node", RANKS, 1e9, 1e-6),))
PLAIN = galvatron.SearchOptions(require=("layers.0=ep",), recompute=("none",), zero=(0,), micro_batches=1)
SIZE = Size(vocabulary=32, width=16, hidden=32, heads=2, layers=1, sequence=8, experts=4)


@pytest.fixture(scope="module")
def program() -> Program:
    return galvatron.capture(Llama(SIZE), batch_of(SIZE, 16, 0))


def estimate(program: Program, plan: str | Plan, skew: float | None = None) -> Estimate:
    return galvatron.estimate(program, plan, CLUSTER, skew=skew)


def experts(*, routed: bool) -> Graph:
    """A product of rows and the matrices that they choose, of which a rank has some: the rows are sent there, or all
    ranks have them."""
    rows, ids = LOCAL_BATCH * ROWS, Value("ids", TensorType("i64", (LOCAL_BATCH * ROWS,)))
    told = (("axis", "tp"), ("size", MATRICES))
    given, made = Value("x", TensorType("f32", (rows, D))), Value("y", TensorType("f32", (rows, H)))
    weight = Value("w", TensorType("f32", (MATRICES // RANKS, H, D)))
    if not routed:
        product = Op("spmd.grouped_linear", (Ref("x"), Ref("w"), Ref("ids")), told, (made,))
        return Graph((given, ids), (weight,), (product,), ("y",))
    way = (("axis", "tp"), ("dim", 0), ("outer", 1), ("by", Ref("ids")), ("size", MATRICES))
    there, back = replace(given, name="there"), replace(made, name="back")
    ops = (
        Op("comm.dispatch", (Ref("x"),), way, (there,)),
        Op("spmd.grouped_linear", (Ref("there"), Ref("w"), Ref("ids")), (*told, ("routed", True)), (made,)),
        Op("comm.combine", (Ref("y"),), way, (back,)),
    )
    return Graph((given, ids), (weight,), ops, ("back",))


@pytest.mark.parametrize("skew", [EVEN, 1.25, 1.5, ALL])
@pytest.mark.parametrize("routed", [False, True])
def test_products_are_of_the_rows_that_choose_a_matrix_of_the_rank(routed: bool, skew: float) -> None:
    """Forward, and twice as many backward; the messages are those of the rank that gets most."""
    profile = profile_graph(experts(routed=routed), (TP,), frozenset({"x", "w"}), skew=skew)
    mean = ROWS if routed else ROWS / RANKS
    own = most_rows(mean, RANKS, skew)
    assert own == mean * min(skew, RANKS)
    for events, times in ((profile.forward, 1), (profile.backward, 2)):
        found = sum(launch.at(1).flop for launch in launches(events) if launch.work is not None)
        assert found == times * 2 * own * D * H
        sent = [event.payload_bytes(1) for event in events if isinstance(event, CollectiveCall)]
        assert sorted(sent) == ([4 * own * D, 4 * own * H] if routed else [])


def test_ranks_tell_each_other_once_how_many_rows_go_where() -> None:
    """Where what they choose is made in the layer."""
    graph = experts(routed=True)
    (given, ids), (first, *others) = graph.inputs, graph.ops
    made = Op("aten.abs.default", (Ref("numbers"),), (), (ids,))
    graph = replace(graph, inputs=(given, replace(ids, name="numbers")), ops=(made, first, *others))
    profile = profile_graph(graph, (TP,), frozenset({"x", "w"}), skew=EVEN)
    told = [event for event in profile.forward if isinstance(event, CollectiveCall) and event.at_once]
    assert [event.payload_bytes(1) for event in told] == [8 * (MATRICES + RANKS)]
    assert not any(isinstance(event, CollectiveCall) and event.at_once for event in profile.backward)


def test_an_estimate_says_what_is_when_rows_choose_evenly_and_what_is_at_most(program: Program) -> None:
    even, usual, uneven = (estimate(program, "ep2", skew) for skew in (1.0, None, 1.75))
    assert even.balanced is not None and usual.skew == SKEW
    assert even.step_time_s == even.balanced.step_time_s == usual.balanced.step_time_s  # type: ignore[union-attr]  # as in even
    assert even.step_time_s < usual.step_time_s < uneven.step_time_s
    assert even.peak_bytes < usual.peak_bytes < uneven.peak_bytes < uneven.bound_bytes == even.bound_bytes  # type: ignore[operator]  # as above
    assert estimate(program, "ep2", 1000.0).peak_bytes == even.bound_bytes


def test_both_are_shown(program: Program, capsys: pytest.CaptureFixture[str]) -> None:
    plan = with_plan(with_costs(program, CLUSTER, None), PlanShorthand.parse("ep2")).required_plan
    found = estimate(program, plan)
    print_estimate(found, plan, program)
    shown = capsys.readouterr().out
    assert "skew 1.25" in shown and "where rows choose evenly" in shown and "at most" in shown
    assert "under skew 1.25" in found._repr_html_() and "where rows choose evenly" in found._repr_html_()


def test_where_no_rank_has_some_of_the_matrices_nothing_depends_on_it(program: Program) -> None:
    found = estimate(program, "dp2", 1.75)
    assert found.balanced is not None
    assert (found.step_time_s, found.peak_bytes) == (found.balanced.step_time_s, found.balanced.peak_bytes)
    assert found.peak_bytes == found.bound_bytes


def test_a_plan_says_what_it_was_made_for(program: Program) -> None:
    options = replace(PLAIN, skew=2.0)
    plan = galvatron.search(program, CLUSTER, search=options)
    assert plan.skew == 2.0 and "skew 2" in plan.title and Plan.from_json(plan.to_json()) == plan
    own = estimate(program, plan)
    assert own.skew == 2.0 and own.step_time_s == plan.step_time_s and own.peak_bytes == plan.peak_bytes
    costed = galvatron.search(program, CLUSTER, search=replace(options, skew=None))
    assert costed.skew == SKEW and costed.step_time_s < plan.step_time_s  # type: ignore[operator]  # predicted


def test_a_budget_is_for_the_rank_that_has_most(program: Program) -> None:
    """What fits where rows choose evenly need not fit where they do not."""
    options = replace(PLAIN, skew=1.0)
    least = galvatron.search(program, CLUSTER, search=options)
    assert least.peak_bytes is not None
    galvatron.search(program, CLUSTER, search=options, memory=max(least.peak_bytes))
    with pytest.raises(PlanError):
        galvatron.search(program, CLUSTER, search=replace(options, skew=1.5), memory=max(least.peak_bytes))


def test_a_program_keeps_the_skew_of_its_plan(program: Program) -> None:
    costed = with_costs(program, CLUSTER, None)
    plan = with_plan(costed, PlanShorthand.parse("ep2")).required_plan
    planned = with_plan(costed, replace(plan, skew=1.5))
    assert parse_program(print_program(planned)).required_plan.skew == 1.5


@pytest.mark.parametrize("skew", [0.5, 0, -1.0, float("inf"), float("nan"), True, "2"])
def test_what_is_no_skew_is_refused(program: Program, skew: object) -> None:
    with pytest.raises(GalvatronError, match="skew"):
        estimate(program, "ep2", skew)  # type: ignore[arg-type]  # on purpose
    with pytest.raises(GalvatronError, match="skew"):
        galvatron.SearchOptions(skew=skew)  # type: ignore[arg-type]  # on purpose
