"""Collectives of a layer beside its computation: what is priced, and where it is worth it."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest

from galvatron.costs.composed import Layer
from galvatron.costs.events import CollectiveCall, Event, Launch, Linear, Mark, collectives_s, hidden_s, kernels_s
from galvatron.costs.overlap import arranged, arrangement_that_pays
from galvatron.costs.profile import Doing, profile_layer
from galvatron.ir.cluster import Cluster
from galvatron.ir.contention import NOTHING_BESIDE
from galvatron.ir.layout import Axis
from galvatron.ir.overlap import AS_IT_STANDS, Arrangement, Window
from galvatron.ir.text import parse_graph
from galvatron.machine import Machine

WIDTH, SAMPLES = 4096, 1024
EP = Axis("ep", 2, 8)
EXPERTS = f"""
graph {{
  input %x : f32[b, {WIDTH}] (S(0))
  input %rows : f32[2*b, {WIDTH}] (S(0))
  input %ids : i64[2*b] (S(0))
  state %up : f32[{WIDTH}, {WIDTH}] (R')
  state %down : f32[{WIDTH}, {WIDTH}] (R')
  %there = comm.dispatch(%rows, axis="ep", dim=0, outer=1, by=%ids, size=8) : f32[2*b, {WIDTH}] (S(0, by=%ids))
  %gelu = aten.gelu.default(%there) : f32[2*b, {WIDTH}] (S(0, by=%ids))
  %back = comm.combine(%gelu, axis="ep", dim=0, outer=1, by=%ids, size=8) : f32[2*b, {WIDTH}] (S(0))
  %shared = aten.linear.default(%x, %up) : f32[b, {WIDTH}] (S(0))
  %shared_1 = aten.linear.default(%shared, %down) : f32[b, {WIDTH}] (S(0))
  return %back, %shared_1
}}
"""
LAYER = Layer.of(parse_graph(EXPERTS), (EP,), frozenset({"x", "rows", "up", "down"}))
CLUSTER = Cluster.parse("a100-80g:2x8")
MACHINE = Machine(CLUSTER)


@cache
def does(arrangement: Arrangement, recompute: str = "none") -> Doing:
    return profile_layer(arranged(LAYER, arrangement), recompute, kind="cuda")


def paying(machine: Machine, recompute: str = "none", samples: int = SAMPLES) -> Arrangement:
    return arrangement_that_pays(LAYER, lambda found: does(found, recompute), recompute, machine, samples)


def test_messages_have_beside_them_as_much_as_they_last() -> None:
    found = paying(MACHINE)
    first, second = found.windows
    assert found.chunks == 1
    assert (first.collective, second.collective) == ("there", "back")
    assert {*first.beside, *second.beside} == {"shared", "shared_1"}


def machine(**changes: float) -> Machine:
    return Machine(replace(CLUSTER, device=replace(CLUSTER.device, **changes)))


def test_nothing_is_started_early_where_it_does_not_pay() -> None:
    cores = replace(CLUSTER, levels=tuple(replace(level, contention=NOTHING_BESIDE) for level in CLUSTER.levels))
    assert paying(Machine(cores)) == AS_IT_STANDS
    assert paying(machine(host_op_s=1.0)) == AS_IT_STANDS
    assert paying(MACHINE, "attention") == AS_IT_STANDS


def message_s(events: tuple[Event, ...]) -> float:
    """What one of the alike messages of a pass takes."""
    (size, *_) = (e.payload_bytes(SAMPLES) for e in events if isinstance(e, CollectiveCall) and e.kind == "all_to_all")
    return MACHINE.collective_s("all_to_all", size, EP)


@pytest.mark.parametrize("direction", [0, 1])
def test_what_runs_beside_a_message_is_taken_off_it_in_both_directions(direction: int) -> None:
    beside = Arrangement(windows=(Window("there", ("shared",)),))
    profiles = [does(AS_IT_STANDS).profile, does(beside).profile]
    whole, parted = ((p.forward, p.backward)[direction] for p in profiles)
    assert sum(isinstance(e, CollectiveCall) for e in whole) == sum(isinstance(e, CollectiveCall) for e in parted) == 2
    assert kernels_s(whole, MACHINE, SAMPLES) == pytest.approx(kernels_s(parted, MACHINE, SAMPLES))
    place = LAYER.graph.ops.index(LAYER.graph.producers["shared"])
    beside_s = kernels_s(does(AS_IT_STANDS).by_op[place][direction], MACHINE, SAMPLES)
    hidden = hidden_s(MACHINE, EP, beside_s, message_s(whole))
    assert hidden > 0
    left_s = collectives_s(whole, MACHINE, SAMPLES) - collectives_s(parted, MACHINE, SAMPLES)
    assert left_s == pytest.approx(hidden, rel=0.05)


KERNEL, SIZE = Launch("gelu", "f32", None, Linear(2.0**26, 0.0)), Linear(2.0**26, 0.0)
KERNEL_S, MESSAGE_S = MACHINE.kernel_s(KERNEL.at(1)), MACHINE.collective_s("all_to_all", SIZE(1), EP)
HIDDEN_S = hidden_s(MACHINE, EP, KERNEL_S, MESSAGE_S)


def message(window: int | None = None) -> CollectiveCall:
    return CollectiveCall("all_to_all", EP, SIZE, window)


@pytest.mark.parametrize(
    ("events", "hidden"),
    [
        ((message(), KERNEL), 0),
        ((message(3), KERNEL, Mark(3)), 1),
        ((message(3), Mark(3), KERNEL), 0),
        ((Mark(-4), KERNEL, message(-4)), 1),
        ((message(3), KERNEL, Mark(3), Mark(-4), KERNEL, message(-4)), 2),
        ((Mark(-4), message(3), Mark(3), KERNEL, message(-4)), 1),  # computed again while a gradient is sent
        ((message(3), Mark(-4), KERNEL, message(-4)), 1),  # what is computed again ends before the wait
        ((message(3), message(5), KERNEL, Mark(5), Mark(3)), 1),
    ],
)
def test_a_kernel_hides_the_message_that_is_under_way(events: tuple[Event, ...], hidden: int) -> None:
    sent = sum(isinstance(event, CollectiveCall) for event in events)
    assert collectives_s(events, MACHINE, 1) == pytest.approx(sent * MESSAGE_S - hidden * HIDDEN_S)
    assert HIDDEN_S > 0


@pytest.mark.parametrize("recompute", ["full", "selective"])
def test_what_is_sent_again_is_beside_the_same(recompute: str) -> None:
    beside = Arrangement(windows=(Window("there", ("shared",)), Window("back", ("shared_1",))))
    whole, parted = does(AS_IT_STANDS, recompute).profile, does(beside, recompute).profile
    sent = [[e for e in p.backward if isinstance(e, CollectiveCall)] for p in (whole, parted)]
    assert len(sent[0]) == len(sent[1])
    assert collectives_s(parted.backward, MACHINE, SAMPLES) < collectives_s(whole.backward, MACHINE, SAMPLES)


def test_what_is_under_way_is_laid_out_until_it_is_waited_for() -> None:
    """Rows as they are sent, and as they come, are there beside a shared expert that runs meanwhile."""
    lines = (line for line in EXPERTS.splitlines() if "comm.combine" not in line)
    graph = parse_graph("\n".join(lines).replace("return %back", "return %gelu"))
    layer = Layer.of(graph, (EP,), LAYER.differentiable)
    both = AS_IT_STANDS, Arrangement(windows=(Window("there", ("shared", "shared_1")),))
    alone, beside = (profile_layer(arranged(layer, one), "none", kind="cuda").profile for one in both)
    made_bytes = 2 * 4 * SAMPLES * WIDTH
    assert beside.saved_bytes(SAMPLES) == alone.saved_bytes(SAMPLES)
    assert beside.forward_extra_bytes(SAMPLES) == alone.forward_extra_bytes(SAMPLES) + made_bytes


def test_messages_that_are_under_way_follow_each_other() -> None:
    """A kernel as long as two of them is beside both."""
    kernel = Launch("gelu", "f32", None, Linear(2.0**33, 0.0))

    def hidden_of(*windows: int) -> float:
        events = (*map(message, windows), kernel, *map(Mark, windows))
        return len(windows) * MESSAGE_S - collectives_s(events, MACHINE, 1)

    assert MACHINE.kernel_s(kernel.at(1)) > 2 * MESSAGE_S
    assert hidden_of(3, 5) > 1.5 * hidden_of(3)


ROWS = f"""
graph {{
  input %rows : f32[8*b, {WIDTH}] (S(0))
  input %ids : i64[8*b] (S(0))
  state %weight : f32[4, {WIDTH}, {WIDTH}] (S(0))
  %there = comm.dispatch(%rows, axis="ep", dim=0, outer=1, by=%ids, size=8) : f32[8*b, {WIDTH}] (S(0, by=%ids))
  %made = spmd.grouped_linear(%there, %weight, %ids, axis="ep", size=8, routed=true) : f32[8*b, {WIDTH}] (S(0, by=%ids))
  %back = comm.combine(%made, axis="ep", dim=0, outer=1, by=%ids, size=8) : f32[8*b, {WIDTH}] (S(0))
  return %back
}}
"""


def test_rows_go_in_chunks_where_that_pays() -> None:
    layer = Layer.of(parse_graph(ROWS), (EP,), frozenset({"rows", "weight"}))

    def does(found: Arrangement) -> Doing:
        return profile_layer(arranged(layer, found), "none", kind="cuda")

    found = arrangement_that_pays(layer, does, "none", MACHINE, SAMPLES)
    assert found.chunks > 1
    assert {window.collective for window in found.windows} >= {"there.1", "back.0"}
    profiles = [does(one).profile for one in (AS_IT_STANDS, found)]
    whole_s, cut_s = (collectives_s((*p.forward, *p.backward), MACHINE, SAMPLES) for p in profiles)
    assert cut_s < 0.8 * whole_s
    assert arrangement_that_pays(layer, does, "none", machine(host_op_s=1.0), SAMPLES) == AS_IT_STANDS
    assert arrangement_that_pays(layer, does, "none", MACHINE, 1) == AS_IT_STANDS  # few rows read all weights
