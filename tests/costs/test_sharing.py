"""Pipelines whose ranks share cores: formulas against a play in which each computation is as fast as cores allow."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from galvatron.costs.sharing import Pace
from galvatron.costs.timeline import MicroBatchTimes, pipeline_s, played_s
from galvatron.schedules import Kind, Schedule

seconds = st.integers(1, 8).map(float)
times = st.builds(MicroBatchTimes, seconds, seconds, seconds)
with_messages = st.builds(MicroBatchTimes, seconds, seconds, seconds, st.integers(0, 8).map(float))
NAMES = ["gpipe", "1f1b", "interleaved2", "zbv"]


def sharing_of(ranks: int, cores: int) -> tuple[tuple[float, float], ...]:
    """Ranks that take turns on some cores."""
    return tuple((float(n), max(1.0, n / cores) / max(1.0, ranks / cores)) for n in range(1, ranks + 1))


@st.composite
def paces(draw: st.DrawFn, degree: int) -> Pace:
    return Pace.of(sharing_of(2 * degree, draw(st.integers(1, 2 * degree + 1))), degree, 2 * degree)


def shared_s(schedule: Schedule, degree: int, micro_batches: int, stages: list[MicroBatchTimes], pace: Pace) -> float:
    """What all ranks take, from one end of a message or a computation to the next."""
    last = len(stages) - 1
    queues = [list(order) for order in schedule.computations(degree, micro_batches)]
    messages: dict[int, float] = {}
    computations: dict[int, float] = {}
    done: set[object] = {None}
    total_s = 0.0
    while any(queues):
        for rank, queue in enumerate(queues):
            if queue and rank not in messages and rank not in computations and queue[0].awaited(last) in done:
                received_s = 0.0 if queue[0].kind is Kind.BACKWARD_WEIGHT else stages[queue[0].stage].transfer_s / 2
                messages[rank] = received_s
        for rank in [rank for rank, left_s in messages.items() if left_s <= 0.0]:
            del messages[rank]
            computations[rank] = stages[queues[rank][0].stage].of(queues[rank][0].kind)
        share = pace.shares[len(computations) - 1] if computations else 1.0
        passed_s = min([*messages.values(), *(left_s * share for left_s in computations.values())])
        total_s += passed_s
        for rank in messages:
            messages[rank] -= passed_s
        for rank, left_s in list(computations.items()):
            computations[rank] = left_s - passed_s / share
            if left_s * share == passed_s:
                del computations[rank]
                done.add(queues[rank].pop(0).result)
    return total_s


@settings(deadline=None)
@given(st.sampled_from(NAMES), st.integers(2, 4), st.data())
def test_a_played_schedule_takes_as_long_as_its_ranks_do_with_what_cores_they_have(
    name: str, degree: int, data: st.DataObject
) -> None:
    schedule, pace = Schedule.parse(name), data.draw(paces(degree))
    micro_batches = data.draw(st.sampled_from([m for m in (*range(1, 13), 40) if schedule.allows(degree, m)]))
    count = len(schedule.holders(degree))
    stages = data.draw(st.lists(with_messages, min_size=count, max_size=count))
    expected_s = shared_s(schedule, degree, micro_batches, stages, pace)
    assert played_s(schedule, degree, micro_batches, stages, pace) == pytest.approx(expected_s, rel=1e-9)


def test_repetitions_that_only_come_closer_to_each_other_are_played_out() -> None:
    schedule, pace = Schedule.parse("zbv"), Pace((1 / 3, 2 / 3, 1.0))
    stages = [*[MicroBatchTimes(1.0, 1.0, 1.0, 0.0)] * 4, *[MicroBatchTimes(1.0, 1.0, 1.0, 1.0)] * 2]
    expected_s = shared_s(schedule, 3, 40, stages, pace)
    assert played_s(schedule, 3, 40, stages, pace) == pytest.approx(expected_s, rel=1e-9)


@settings(deadline=None)
@given(st.sampled_from(["gpipe", "1f1b"]), st.integers(1, 6), st.integers(1, 12), times, st.data())
def test_phases_are_exact_for_equal_stages_and_for_one_alone(
    name: str, degree: int, micro_batches: int, each: MicroBatchTimes, data: st.DataObject
) -> None:
    schedule, pace = Schedule.parse(name), data.draw(paces(degree))
    stages = [each] * degree
    assert pipeline_s(schedule, degree, micro_batches, stages, pace) == pytest.approx(
        played_s(schedule, degree, micro_batches, stages, pace), rel=1e-9
    )
    alone = [each, *[MicroBatchTimes(0.0, 0.0, 0.0)] * (degree - 1)]
    expected_s = micro_batches * each.micro_batch_s * pace.shares[0]
    assert pipeline_s(schedule, degree, micro_batches, alone, pace) == pytest.approx(expected_s, rel=1e-9)


@settings(deadline=None)
@given(st.sampled_from(["gpipe", "1f1b"]), st.integers(2, 4), st.integers(1, 12), st.data())
def test_phases_of_uneven_stages_are_nearly_what_is_played(
    name: str, degree: int, micro_batches: int, data: st.DataObject
) -> None:
    """Off by no more than what the stages together take less than as many of the slowest, each micro-batch."""
    schedule, pace = Schedule.parse(name), data.draw(paces(degree))
    stages = data.draw(st.lists(times, min_size=degree, max_size=degree))
    passes = [[stage.forward_s for stage in stages], [stage.input_s + stage.weight_s for stage in stages]]
    uneven_s = sum(degree * max(each_s) - sum(each_s) for each_s in passes)
    found_s = pipeline_s(schedule, degree, micro_batches, stages, pace)
    expected_s = played_s(schedule, degree, micro_batches, stages, pace)
    assert abs(found_s - expected_s) <= micro_batches * uneven_s + 1e-9


@given(st.sampled_from(["gpipe", "1f1b"]), st.integers(1, 6), st.integers(1, 12), seconds, st.data())
def test_messages_take_as_long_whoever_computes(
    name: str, degree: int, micro_batches: int, transfer_s: float, data: st.DataObject
) -> None:
    schedule, pace = Schedule.parse(name), data.draw(paces(degree))
    first, *others = [MicroBatchTimes(0.0, 0.0, 0.0, transfer_s)] * degree
    stages = [replace(first, transfer_s=0.0), *others]
    expected_s = (micro_batches + degree - 2) * transfer_s if others else 0.0
    assert pipeline_s(schedule, degree, micro_batches, stages, pace) == pytest.approx(expected_s)


@given(st.sampled_from(["gpipe", "1f1b"]), st.integers(1, 6), st.integers(1, 12), with_messages)
def test_a_message_is_as_long_as_what_is_computed_on_ranks_with_a_device_each(
    name: str, degree: int, micro_batches: int, each: MicroBatchTimes
) -> None:
    schedule = Schedule.parse(name)
    received_s = each.transfer_s / 2
    computed = MicroBatchTimes(each.forward_s + received_s, each.input_s + received_s, each.weight_s)
    found_s = pipeline_s(schedule, degree, micro_batches, [each] * degree)
    assert found_s == pytest.approx(pipeline_s(schedule, degree, micro_batches, [computed] * degree))


@given(st.integers(1, 8), st.integers(1, 40), st.data())
def test_more_work_never_takes_less_and_sharing_never_more(
    degree: int, micro_batches: int, data: st.DataObject
) -> None:
    lines = data.draw(paces(degree)).lines(micro_batches)
    assert all(of_sum > 0 and of_slowest >= 0 for of_sum, of_slowest in lines)
    each_s = data.draw(st.lists(st.floats(0.1, 10.0), min_size=degree, max_size=degree))
    found_s = max(a * sum(each_s) + b * max(each_s) for a, b in lines)
    assert found_s <= (sum(each_s) + (micro_batches - 1) * max(each_s)) * (1 + 1e-9)
    assert found_s >= micro_batches * sum(each_s) / degree * (1 - 1e-9)


def test_a_second_is_what_is_left_of_it_on_ranks_that_share() -> None:
    assert Pace.of((), 4, 8) == Pace((1.0,) * 4)
    assert Pace.of(((1.0, 0.5), (2.0, 0.5), (4.0, 1.0)), 4, 4).shares == (0.5, 0.5, 0.75, 1.0)
    assert Pace.of(((1.0, 0.5), (2.0, 0.5), (4.0, 1.0)), 2, 4).shares == (0.5, 1.0)
    assert Pace.of(((2.0, 0.5), (4.0, 1.0)), 4, 4).shares[0] == 0.5
