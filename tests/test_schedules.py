"""Schedules: who holds which stage, how many micro-batches run, and orders that end and keep what they say."""

from __future__ import annotations

from collections import Counter

import pytest

from galvatron.errors import PlanError
from galvatron.schedules import SCHEDULES, Kind, Schedule, held_over_time, in_flight, orders

NAMES = (*SCHEDULES, "interleaved3")
CASES = [
    (name, degree, micro_batches)
    for name in NAMES
    for degree in range(1, 6)
    for micro_batches in range(1, 13)
    if Schedule.parse(name).stages_per_rank == 1 or degree > 1
]


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
def test_every_micro_batch_passes_every_stage_in_an_order_that_ends(name: str) -> None:
    """Carried out one by one, sends waiting for nobody and receives for their sends; each message has two ends."""
    schedule = Schedule.parse(name)
    for _, degree, micro_batches in (case for case in CASES if case[0] == name):
        if not schedule.allows(degree, micro_batches):
            continue
        ranks, holders = orders(schedule, degree, micro_batches), schedule.holders(degree)
        counts = Counter((a.kind, a.stage, a.micro_batch) for order in ranks for a in order)
        assert set(counts.values()) == {1}
        stages = range(len(holders))
        expected = {(Kind.FORWARD, s, m) for s in stages for m in range(micro_batches)}
        assert expected <= counts.keys()
        done: set[tuple[str, int, int]] = set()
        positions = [0] * degree
        while any(p < len(order) for p, order in zip(positions, ranks, strict=True)):
            before = list(positions)
            for rank, order in enumerate(ranks):
                while positions[rank] < len(order) and ready(order[positions[rank]], done, holders):
                    action = order[positions[rank]]
                    assert holders[action.stage] == rank
                    done.add((action.kind.name, action.stage, action.micro_batch))
                    if action.kind is Kind.BACKWARD:
                        done.add(("BACKWARD_INPUT", action.stage, action.micro_batch))
                    positions[rank] += 1
            assert positions != before, f"{name} on {degree} ranks with {micro_batches} micro-batches hangs"
        for stage in stages:
            assert all(("BACKWARD_INPUT", stage, m) in done for m in range(micro_batches))


def ready(action, done: set[tuple[str, int, int]], holders: tuple[int, ...]) -> bool:
    """Whether what an action needs has happened."""
    stage, m, last = action.stage, action.micro_batch, len(holders) - 1

    def moved(kind: str, other: int, message: str) -> bool:
        # Between two stages of a rank nothing is sent.
        return (kind, other, m) in done if holders[other] == holders[stage] else (message, stage, m) in done

    if action.kind is Kind.FORWARD:
        return stage == 0 or moved("FORWARD", stage - 1, "RECV_F")
    if action.kind in (Kind.BACKWARD, Kind.BACKWARD_INPUT):
        return ("FORWARD", stage, m) in done and (stage == last or moved("BACKWARD_INPUT", stage + 1, "RECV_B"))
    needs = {
        Kind.BACKWARD_WEIGHT: ("BACKWARD_INPUT", stage),
        Kind.SEND_F: ("FORWARD", stage),
        Kind.SEND_B: ("BACKWARD_INPUT", stage),
        Kind.RECV_F: ("SEND_F", stage - 1),
        Kind.RECV_B: ("SEND_B", stage + 1),
    }[action.kind]
    return (*needs, m) in done


def test_what_is_in_flight() -> None:
    assert in_flight(Schedule.parse("gpipe"), 3, 5) == (5, 5, 5)
    assert in_flight(Schedule.parse("gpipe"), 1, 5) == (1,), "one stage has nobody to wait for"
    assert in_flight(Schedule.parse("1f1b"), 3, 5) == (3, 2, 1)
    assert in_flight(Schedule.parse("1f1b"), 3, 2) == (2, 2, 1)
    assert in_flight(Schedule.parse("zbv"), 4, 16) == (8, 7, 6, 5, 4, 3, 2, 1)
    assert in_flight(Schedule.parse("interleaved2"), 2, 8) == (4, 3, 2, 1)
    # A rank of a V holds as much as any other: 2P micro-batches of a stage half as long as under 1F1B.
    totals = [max(sum(held.values()) for held in held_over_time(o)) for o in orders(Schedule.parse("zbv"), 4, 16)]
    assert totals == [8, 8, 8, 8]


@pytest.mark.parametrize("name", ["gpipe", "1f1b"])
def test_formulas_say_what_orders_hold(name: str) -> None:
    schedule = Schedule.parse(name)
    for degree in range(1, 6):
        for micro_batches in range(1, 8):
            held = [max(h[r] for h in held_over_time(o)) for r, o in enumerate(orders(schedule, degree, micro_batches))]
            assert tuple(held) == in_flight(schedule, degree, micro_batches)
