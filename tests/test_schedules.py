"""Schedules: who holds which stage, how many micro-batches run, and orders that end and keep what they say."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from torch.distributed.pipelining import schedules as torch_schedules
from torch.nn import Module

from galvatron.errors import PlanError
from galvatron.schedules import SCHEDULES, Action, Kind, Schedule, at_turn, default_schedule, held_over_time, orders
from galvatron.schedules.actions import numbered
from galvatron.schedules.kinds import GPipe, Interleaved, OneForwardOneBackward

NAMES = (*SCHEDULES, "interleaved3")
CASES = {
    name: [
        (schedule, degree, micro_batches)
        for degree in range(1, 6)
        for micro_batches in range(1, 13)
        if schedule.allows(degree, micro_batches)
    ]
    for name, schedule in zip(NAMES, map(Schedule.parse, NAMES), strict=True)
}
"""By name, what a schedule allows: degrees and numbers of micro-batches."""


@pytest.mark.parametrize("name", [*NAMES, "interleaved12"])
def test_names_read_back(name: str) -> None:
    assert str(Schedule.parse(name)) == name


@pytest.mark.parametrize("name", ["1f1", "interleaved", "interleaved1", "interleaved02", "zb", "", "gpipe2"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(PlanError, match="unknown schedule"):
        Schedule.parse(name)


def test_who_holds_what() -> None:
    assert Schedule.parse("1f1b").holders(3) == (0, 1, 2)
    assert Schedule.parse("interleaved3").holders(2) == (0, 1, 0, 1, 0, 1)
    assert Schedule.parse("zbv").holders(3) == (0, 1, 2, 2, 1, 0)


@pytest.mark.parametrize(
    ("name", "degree", "micro_batches", "message"),
    [
        ("interleaved2", 2, 5, "5 micro-batches are 2 rounds and a rest; use m4 or m6"),
        ("interleaved2", 4, 11, "use m10 or m12"),
        ("interleaved2", 1, 4, "needs a pipeline of at least 2 ranks, not 1"),
        ("zbv", 1, 4, "needs a pipeline of at least 2 ranks"),
        ("gpipe", 2, 0, "at least 1 micro-batch"),
    ],
)
def test_what_cannot_run_is_refused(name: str, degree: int, micro_batches: int, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        Schedule.parse(name).check(degree, micro_batches)


@pytest.mark.parametrize("name", NAMES)
def test_where_the_pass_turns(name: str) -> None:
    """In the last stage, as often as the schedule says, and nowhere before the end of a loss of all micro-batches."""
    for schedule, degree, micro_batches in CASES[name]:
        last = degree * schedule.stages_per_rank - 1
        rank = schedule.holders(degree)[last]
        turns = at_turn(orders(schedule, degree, micro_batches)[rank], last)
        assert len(turns) == schedule.turns(degree, micro_batches)
        if schedule.allows(degree, micro_batches, epilogue=True):
            order = orders(schedule, degree, micro_batches, epilogue=True)[rank]
            assert not at_turn(order, last) and not schedule.turns(degree, micro_batches, epilogue=True)


@pytest.mark.parametrize("name", NAMES)
def test_every_micro_batch_passes_every_stage(name: str) -> None:
    """Once each way, on the rank that holds the stage, in the order of the micro-batches."""
    for schedule, degree, micro_batches in CASES[name]:
        holders = schedule.holders(degree)
        backward = {Kind.BACKWARD_INPUT, Kind.BACKWARD_WEIGHT} if schedule.splits_backward else {Kind.BACKWARD}
        seen: dict[tuple[Kind, int], list[int]] = defaultdict(list)
        for rank, order in enumerate(schedule.computations(degree, micro_batches)):
            for action in order:
                assert holders[action.stage] == rank
                seen[action.kind, action.stage].append(action.micro_batch)
        stages = range(degree * schedule.stages_per_rank)
        assert seen == {
            (kind, stage): [*range(micro_batches)] for kind in {Kind.FORWARD, *backward} for stage in stages
        }


@pytest.mark.parametrize("epilogue", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_ranks_that_wait_for_each_other_come_to_an_end(name: str, epilogue: bool) -> None:
    """All ranks played one action at a time: a send ends when its receive begins, and neither does before.

    The play knows only what is on the same rank, so a message that is missing or in a wrong place is found too.
    """
    for schedule, degree, micro_batches in CASES[name]:
        if not schedule.allows(degree, micro_batches, epilogue=epilogue):
            continue
        holders = schedule.holders(degree)
        queues = [deque(order) for order in orders(schedule, degree, micro_batches, epilogue=epilogue)]
        on_rank: list[set[Action]] = [set() for _ in queues]
        while any(queues):
            before = sum(map(len, queues))
            for rank, queue in enumerate(queues):
                while queue and queue[0].kind not in SENDS.keys() | SENDS.values():
                    assert needed(queue[0], schedule, holders, micro_batches) <= on_rank[rank]
                    on_rank[rank].add(queue.popleft())
                if queue and queue[0].kind in SENDS:
                    send = queue[0]
                    target = send.stage + (1 if send.kind is Kind.SEND_F else -1)
                    receive = Action(SENDS[send.kind], target, send.micro_batch)
                    peer = holders[target]
                    assert needed(send, schedule, holders, micro_batches) <= on_rank[rank]
                    if queues[peer] and queues[peer][0] == receive:
                        on_rank[peer].add(queues[peer].popleft())
                        queue.popleft()
            assert sum(map(len, queues)) < before, f"{name} on {degree} ranks with {micro_batches} micro-batches hangs"


SENDS = {Kind.SEND_F: Kind.RECV_F, Kind.SEND_B: Kind.RECV_B}


def needed(action: Action, schedule: Schedule, holders: Sequence[int], micro_batches: int) -> set[Action]:
    """What a rank must have done before an action."""
    stage, m, last = action.stage, action.micro_batch, len(holders) - 1
    backward = Kind.BACKWARD_INPUT if schedule.splits_backward else Kind.BACKWARD

    def handed_over(kind: Kind, source: int, receive: Kind) -> Action:
        return Action(kind, source, m) if holders[source] == holders[stage] else Action(receive, stage, m)

    if action.kind is Kind.FORWARD:
        return {handed_over(Kind.FORWARD, stage - 1, Kind.RECV_F)} if stage else set()
    if action.kind is backward:
        own = {Action(Kind.FORWARD, stage, m)}
        return own | ({handed_over(backward, stage + 1, Kind.RECV_B)} if stage < last else set())
    if action.kind is Kind.EPILOGUE:
        return {Action(Kind.FORWARD, last, other) for other in range(micro_batches)}
    makers = {Kind.SEND_F: Kind.FORWARD, Kind.SEND_B: backward, Kind.BACKWARD_WEIGHT: backward}
    return {Action(makers[action.kind], stage, m)}


@pytest.mark.parametrize("name", NAMES)
def test_orders_are_those_of_torch(name: str) -> None:
    """Action by action, messages included, where torch's rules for messages are given what is computed alone.

    Its interleaved schedules count the gathers and reductions of FSDP as turns of a rank, so that their messages stand
    elsewhere, without another meaning; ours have no such turns. A pipeline of one rank is none to torch, and its 1F1B
    refuses fewer micro-batches than ranks.
    """
    for schedule, degree, micro_batches in CASES[name]:
        if degree > 1 and (name != "1f1b" or micro_batches >= degree):
            computed = [*schedule.computations(degree, micro_batches)]
            assert of_torch(schedule, degree, micro_batches) == computed
            holders, kinds = schedule.holders(degree), torch_schedules._ComputationType
            given = {
                rank: [torch_schedules._Action(a.stage, kinds[TORCH[a.kind]], a.micro_batch) for a in order]
                for rank, order in enumerate(computed)
            }
            placed = torch_schedules._add_send_recv(given, holders.__getitem__, len(holders))
            for rank, order in enumerate(orders(schedule, degree, micro_batches)):
                found = [(a.computation_type.name, a.stage_index, a.microbatch_index) for a in placed[rank]]
                assert found == [(TORCH[a.kind], a.stage, a.micro_batch) for a in order]


TORCH = {kind: "FULL_BACKWARD" if kind is Kind.BACKWARD else kind.name for kind in Kind}


def of_torch(schedule: Schedule, degree: int, micro_batches: int) -> list[tuple[Action, ...]]:
    """What torch has each rank compute.

    Its 1F1B counts the forwards of the last rank from 1, so micro-batches are counted here. Its constructors only ask a
    stage how many there are; no process group is needed.
    """
    one: Any = SimpleNamespace(
        num_stages=degree * schedule.stages_per_rank, group_size=degree, group_rank=0, stage_index=0, submod=Module(),
        has_backward=True,
    )  # fmt: skip
    stages: Any = [one] * schedule.stages_per_rank
    if isinstance(schedule, GPipe | OneForwardOneBackward):
        cls = torch_schedules.ScheduleGPipe if isinstance(schedule, GPipe) else torch_schedules.Schedule1F1B
        found = cls(one, micro_batches)._get_pipeline_order()
    elif isinstance(schedule, Interleaved):
        found = torch_schedules.ScheduleInterleaved1F1B(stages, micro_batches).pipeline_order
    else:
        found = torch_schedules.ScheduleZBVZeroBubble(stages, micro_batches).pipeline_order
    assert found is not None
    kinds = {name: kind for kind, name in TORCH.items()}
    ranks = ([a for a in found[rank] if a is not None and a.microbatch_index is not None] for rank in range(degree))
    return [numbered([(kinds[a.computation_type.name], a.stage_index) for a in own], micro_batches) for own in ranks]


def test_an_epilogue_stands_between_forwards_and_backwards() -> None:
    for degree in (1, 2, 3):
        for rank, order in enumerate(orders(Schedule.parse("gpipe"), degree, 4, epilogue=True)):
            computed = [a.kind for a in order if a.kind in (Kind.FORWARD, Kind.BACKWARD, Kind.EPILOGUE)]
            ends = [Kind.EPILOGUE] if rank == degree - 1 else []
            assert computed == [Kind.FORWARD] * 4 + ends + [Kind.BACKWARD] * 4


@pytest.mark.parametrize(
    ("micro_batches", "epilogue", "name"), [(4, False, "1f1b"), (1, True, "1f1b"), (4, True, "gpipe")]
)
def test_the_schedule_of_a_plan_that_names_none(micro_batches: int, epilogue: bool, name: str) -> None:
    assert str(default_schedule(micro_batches, epilogue=epilogue)) == name


def test_what_is_in_flight() -> None:
    assert Schedule.parse("gpipe").in_flight(3, 5) == (5, 5, 5)
    assert Schedule.parse("gpipe").in_flight(1, 5) == (1,), "one stage has nobody to wait for"
    assert Schedule.parse("1f1b").in_flight(3, 5) == (3, 2, 1)
    assert Schedule.parse("1f1b").in_flight(3, 2) == (2, 2, 1)
    assert Schedule.parse("zbv").in_flight(4, 16) == (8, 7, 6, 5, 4, 3, 2, 1)
    assert Schedule.parse("interleaved2").in_flight(2, 8) == (4, 3, 2, 1)
    # A rank of a V holds as much as any other: 2P micro-batches of a stage half as long as under 1F1B.
    totals = [max(sum(held.values()) for held in held_over_time(o)) for o in orders(Schedule.parse("zbv"), 4, 16)]
    assert totals == [8, 8, 8, 8]


@pytest.mark.parametrize("epilogue", [False, True])
@pytest.mark.parametrize("name", ["gpipe", "1f1b"])
def test_formulas_say_what_orders_hold(name: str, epilogue: bool) -> None:
    for schedule, degree, micro_batches in CASES[name]:
        if schedule.allows(degree, micro_batches, epilogue=epilogue):
            ranks = enumerate(schedule.computations(degree, micro_batches, epilogue=epilogue))
            held = tuple(max(held[rank] for held in held_over_time(order)) for rank, order in ranks)
            assert held == schedule.in_flight(degree, micro_batches, epilogue=epilogue)


@pytest.mark.parametrize("name", ["1f1b", "interleaved2", "interleaved3", "interleaved4", "zbv"])
def test_with_fewer_micro_batches_the_order_is_the_same_but_for_repetitions(name: str) -> None:
    """What is left out are as many actions as those before them, `unit` micro-batches later each time."""
    schedule = Schedule.parse(name)
    for degree in (2, 3, 5):
        for micro_batches in (m for m in range(1, 40) if schedule.allows(degree, m)):
            fewer = schedule.shorter(degree, micro_batches, 1)
            unit = schedule.shorter(degree, micro_batches, 2) - fewer
            ranks = zip(schedule.computations(degree, micro_batches), schedule.computations(degree, fewer), strict=True)
            for long, short in ranks:
                last_forwards = {a.stage: i for i, a in enumerate(short) if a.kind is Kind.FORWARD}
                cut = min(last_forwards.values()) + 1
                left_out = micro_batches - fewer
                repeated = short[cut - len(short) * unit // fewer : cut] if unit else ()
                expected = [*short[:cut]]
                for later in range(unit, left_out + 1, unit) if unit else ():
                    expected += [_later(action, later) for action in repeated]
                assert list(long) == [*expected, *(_later(action, left_out) for action in short[cut:])]


def _later(action: Action, micro_batches: int) -> Action:
    return Action(action.kind, action.stage, action.micro_batch + micro_batches)


@pytest.mark.parametrize("name", ["interleaved2", "interleaved3", "zbv"])
def test_what_is_in_flight_is_what_orders_hold(name: str) -> None:
    schedule = Schedule.parse(name)
    for degree in (2, 3, 5):
        for micro_batches in (m for m in range(1, 40) if schedule.allows(degree, m)):
            most = [0] * len(schedule.holders(degree))
            for order in schedule.computations(degree, micro_batches):
                for held in held_over_time(order):
                    most = [max(count, held.get(stage, 0)) for stage, count in enumerate(most)]
            assert tuple(most) == schedule.in_flight(degree, micro_batches)
