"""How long a pipeline takes: formulas against the order played through, on random times of stages."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from galvatron.costs.steepest import steepest
from galvatron.costs.timeline import MicroBatchTimes, critical_path, pipeline_s, played_s
from galvatron.schedules import Schedule, paths

seconds = st.integers(0, 8).map(float)
times = st.builds(MicroBatchTimes, seconds, seconds, seconds)


@settings(deadline=None)
@given(st.lists(times, min_size=1, max_size=6), st.integers(1, 12))
def test_gpipe_takes_as_long_as_its_two_phases(stages: list[MicroBatchTimes], micro_batches: int) -> None:
    schedule = Schedule.parse("gpipe")
    formula_s = pipeline_s(schedule, len(stages), micro_batches, stages)
    assert formula_s == pytest.approx(played_s(schedule, len(stages), micro_batches, stages), rel=1e-12)


@settings(deadline=None)
@given(st.lists(times, min_size=1, max_size=6), st.integers(1, 12))
def test_1f1b_takes_as_long_as_one_phase_but_for_uneven_stages(
    stages: list[MicroBatchTimes], micro_batches: int
) -> None:
    """So the formula is exact for even stages, however each divides its time into forward and backward."""
    schedule = Schedule.parse("1f1b")
    formula_s = pipeline_s(schedule, len(stages), micro_batches, stages)
    each_s = [stage.micro_batch_s for stage in stages]
    uneven_s = len(stages) * max(each_s) - sum(each_s)
    assert abs(formula_s - played_s(schedule, len(stages), micro_batches, stages)) <= uneven_s + 1e-9


@settings(deadline=None)
@given(st.sampled_from(["gpipe", "1f1b", "interleaved2", "interleaved3", "zbv"]), st.integers(2, 4), st.data())
def test_no_order_is_faster_than_its_parts(name: str, degree: int, data: st.DataObject) -> None:
    """A rank computes one thing after the other, and a micro-batch goes through all stages and back."""
    schedule = Schedule.parse(name)
    micro_batches = data.draw(st.sampled_from([m for m in range(1, 13) if schedule.allows(degree, m)]))
    holders = schedule.holders(degree)
    stages = data.draw(st.lists(times, min_size=len(holders), max_size=len(holders)))
    found_s = played_s(schedule, degree, micro_batches, stages)
    for rank in range(degree):
        own = [stage for stage, holder in zip(stages, holders, strict=True) if holder == rank]
        assert found_s >= micro_batches * sum(stage.micro_batch_s for stage in own)
    assert found_s >= sum(stage.forward_s + stage.input_s for stage in stages)


def along_s(path: Sequence[Sequence[float]], schedule: Schedule, stages: Sequence[MicroBatchTimes]) -> float:
    """What the computations of a path take together."""
    return float((np.array(path) * [stage.parts(schedule) for stage in stages]).sum())


@settings(deadline=None)
@given(st.sampled_from(["interleaved2", "interleaved3", "zbv"]), st.integers(2, 4), st.data())
def test_no_order_is_faster_than_its_steepest_paths(name: str, degree: int, data: st.DataObject) -> None:
    """However long its stages take; and one path takes as long as the step."""
    schedule = Schedule.parse(name)
    micro_batches = data.draw(st.sampled_from([m for m in range(1, 13) if schedule.allows(degree, m)]))
    count = len(schedule.holders(degree))
    stages = data.draw(st.lists(times, min_size=count, max_size=count))
    found_s = played_s(schedule, degree, micro_batches, stages)
    path = critical_path(schedule, degree, micro_batches, stages)
    assert along_s(path, schedule, stages) == pytest.approx(found_s)
    mean = steepest(schedule, degree, micro_batches)
    assert mean is not None
    assert along_s(mean, schedule, stages) <= found_s + 1e-9


@pytest.mark.parametrize(("name", "least"), [("interleaved2", 3.5), ("zbv", 3.2)])
def test_paths_go_through_what_ranks_wait_for(name: str, least: float) -> None:
    """Two ranks compute two micro-batches for 3 times what one takes; however the work is shared, they also wait."""
    schedule = Schedule.parse(name)
    unit = MicroBatchTimes(1.0, 1.0, 1.0)
    mean = steepest(schedule, 2, 2)
    assert mean is not None
    own = np.array(mean) @ unit.parts(schedule)
    assert least <= own.min() <= played_s(schedule, 2, 2, [unit] * 4) / 4
    for path in paths(schedule, 2, 2):
        assert (np.array(path) @ unit.parts(schedule)).min() < own.min()


def test_paths_of_very_many_computations_are_not_looked_for() -> None:
    assert steepest(Schedule.parse("zbv"), 64, 128) is None


def action_by_action_s(schedule: Schedule, degree: int, micro_batches: int, stages: list[MicroBatchTimes]) -> float:
    """What all ranks take, told of each action of theirs in turn."""
    last = len(stages) - 1
    queues = [list(order) for order in schedule.computations(degree, micro_batches)]
    done_s: dict[object, float] = {None: 0.0}
    clocks_s = [0.0] * degree
    while any(queues):
        for rank, queue in enumerate(queues):
            while queue and queue[0].awaited(last) in done_s:
                action = queue.pop(0)
                start_s = max(clocks_s[rank], done_s[action.awaited(last)])
                clocks_s[rank] = start_s + stages[action.stage].of(action.kind)
                if action.result is not None:
                    done_s[action.result] = clocks_s[rank]
    return max(clocks_s)


orders = st.sampled_from(["1f1b", "interleaved2", "interleaved3", "zbv"])


@settings(deadline=None, max_examples=200)
@given(orders, st.integers(2, 4), st.integers(1, 60), st.sampled_from([0, 1, 8]), st.data())
def test_repetitions_are_as_long_as_played(name: str, degree: int, most: int, spread: int, data: st.DataObject) -> None:
    """However uneven stages are: with hardly any difference between them it takes long until they repeat."""
    schedule = Schedule.parse(name)
    micro_batches = max(m for m in range(1, most + 1) if schedule.allows(degree, m))
    uneven = st.integers(20, 20 + spread).map(float)
    count = len(schedule.holders(degree))
    stages = data.draw(st.lists(st.builds(MicroBatchTimes, uneven, uneven, uneven), min_size=count, max_size=count))
    found_s = played_s(schedule, degree, micro_batches, stages)
    assert found_s == action_by_action_s(schedule, degree, micro_batches, stages)


def test_few_repetitions_of_many_are_played(monkeypatch: pytest.MonkeyPatch) -> None:
    played: list[int] = []

    def order(self: Schedule, degree: int, micro_batches: int, *, epilogue: bool = False) -> object:
        played.append(micro_batches)
        return computations(self, degree, micro_batches, epilogue=epilogue)

    computations = Schedule.computations
    monkeypatch.setattr(Schedule, "computations", order)
    stages = [MicroBatchTimes(1.0, 2.0, 1.0)] * 21 + [MicroBatchTimes(1.0, 2.0, 3.0)]
    assert played_s(Schedule.parse("interleaved2"), 11, 11 * 1000, stages) > 11 * 1000 * 10.0
    assert played == [11 * 5]


def test_what_takes_for_ever_is_not_played() -> None:
    stages = [MicroBatchTimes(1.0, 1.0, 1.0), MicroBatchTimes(1.0, math.inf, 1.0)] * 2
    assert played_s(Schedule.parse("interleaved2"), 2, 8, stages) == math.inf


@settings(deadline=None)
@given(st.integers(2, 5), st.integers(1, 4), seconds)
def test_a_v_of_even_parts_has_hardly_a_bubble(degree: int, more: int, unit_s: float) -> None:
    """Where forward, gradients of inputs and those of weights take equally long, a rank waits for its first micro-batch
    and at the end for nothing but that."""
    micro_batches = 2 * degree - 1 + more
    stages = [MicroBatchTimes(unit_s, unit_s, unit_s)] * (2 * degree)
    found_s = played_s(Schedule.parse("zbv"), degree, micro_batches, stages)
    assert found_s == pytest.approx((6 * micro_batches + degree - 1) * unit_s)
