"""How long a pipeline takes whose ranks carry out a schedule: its actions played through, each as soon as it can."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from galvatron.costs.sharing import Pace
from galvatron.schedules import Kind, Schedule
from galvatron.schedules.actions import Action, Result


@dataclass(frozen=True)
class MicroBatchTimes:
    """Seconds of one micro-batch, on a layer or a stage: forward, the backward up to the gradients that the stage
    before waits for, and the rest of the backward; and `transfer_s` of messages that the stage waits for before these,
    half of it forward."""

    forward_s: float
    input_s: float
    weight_s: float
    transfer_s: float = 0.0

    @property
    def micro_batch_s(self) -> float:
        """Seconds of one micro-batch, forward and backward, without messages."""
        return self.forward_s + self.input_s + self.weight_s

    def of(self, kind: Kind) -> float:
        """Seconds of a computation."""
        if kind is Kind.BACKWARD:
            return self.input_s + self.weight_s
        return {
            Kind.FORWARD: self.forward_s,
            Kind.BACKWARD_INPUT: self.input_s,
            Kind.BACKWARD_WEIGHT: self.weight_s,
        }[kind]

    def parts(self, schedule: Schedule) -> tuple[float, ...]:
        """Seconds of each part that a schedule tells apart (`Schedule.parts`)."""
        return tuple(sum(map(self.of, part)) for part in schedule.parts)


def pipeline_s(
    schedule: Schedule, degree: int, micro_batches: int, stages: Sequence[MicroBatchTimes], pace: Pace | None = None
) -> float:
    """Seconds from the first forward to the last backward of all micro-batches, by phases where a schedule has them."""
    pace = pace or Pace.even(degree)
    if not schedule.phases:
        return played_s(schedule, degree, micro_batches, stages, pace)
    phases = len(schedule.phases)
    each = [[phase_s + pace.beside(stage.transfer_s / phases) for phase_s in stage.parts(schedule)] for stage in stages]
    total_s, transfer_s = sum(s.micro_batch_s for s in stages), sum(s.transfer_s for s in stages)
    if not math.isfinite(total_s + transfer_s):
        return math.inf
    return float(pace.phases_s(micro_batches, total_s, sum(map(max, zip(*each, strict=True))), transfer_s))


def played_s(
    schedule: Schedule, degree: int, micro_batches: int, stages: Sequence[MicroBatchTimes], pace: Pace | None = None
) -> float:
    """The same with every computation played through, each as soon as it can, behind the message that it waits for.

    Where an order repeats itself, few of its repetitions are played: as many as it takes until one is as long as the
    one before, in all that it does, after which they all are (`_repetition`).
    """
    pace = pace or Pace.even(degree)
    if not all(math.isfinite(stage.micro_batch_s + stage.transfer_s) for stage in stages):
        return math.inf
    durations = _durations(stages)

    def passed(order: _Order, ends: Sequence[Sequence[int]]) -> float:
        if pace.is_even:
            return max(rank[-1] for rank in ends)
        return max(rank[-1].end_s for rank in _shared(order, stages, pace)) / QUANTUM_S

    repetitions = 2
    while (fewer := schedule.shorter(degree, micro_batches, repetitions)) < micro_batches // 2:
        order = _order(schedule, degree, fewer)
        ends = _played(order, durations)
        unit = schedule.shorter(degree, micro_batches, repetitions + 1) - fewer
        each = _repetition(order, ends, unit)
        if each is not None:
            first = passed(order, ends)
            if not pace.is_even:  # what ranks get of the cores may still change from one repetition to the next
                later = [_order(schedule, degree, fewer + count * unit) for count in (1, 2)]
                second, third = (passed(more, _played(more, durations)) for more in later)
                each = second - first if math.isclose(third - second, second - first, rel_tol=_ALIKE) else None
        if each is not None:
            return (first + (micro_batches - fewer) // unit * each) * QUANTUM_S
        repetitions *= 4
    order = _order(schedule, degree, micro_batches)
    return passed(order, _played(order, durations)) * QUANTUM_S


class Span(NamedTuple):
    """When a rank begins to receive what a computation waits for, when it has that, and when it has computed."""

    begin_s: float
    computing_s: float
    end_s: float


Played = tuple[tuple[Action, Span], ...]
"""What a rank does, in its order, and when."""


def played(
    schedule: Schedule,
    degree: int,
    micro_batches: int,
    stages: Sequence[MicroBatchTimes],
    pace: Pace | None = None,
    *,
    epilogue: bool = False,
) -> tuple[Played, ...]:
    """For each rank all that `played_s` plays; with an epilogue in the order that leaves room for one."""
    pace = pace or Pace.even(degree)
    order = _order(schedule, degree, micro_batches, epilogue)
    if pace.is_even:
        ends = _played(order, _durations(stages))
        ranks = zip(order.ranks, ends, strict=True)
        spans = [[_span(step, end, stages) for step, end in zip(*rank, strict=True)] for rank in ranks]
    else:
        spans = _shared(order, stages, pace)
    actions = schedule.computations(degree, micro_batches, epilogue=epilogue)
    return tuple(tuple(zip(*rank, strict=True)) for rank in zip(actions, spans, strict=True))


def critical_path(
    schedule: Schedule, degree: int, micro_batches: int, stages: Sequence[MicroBatchTimes]
) -> list[list[int]]:
    """How often each stage is, by `Schedule.parts`, on a path through the order of all that takes as long as the step:
    computations of which each waits for the one before it, on its rank or for its message."""
    order, durations = _order(schedule, degree, micro_batches), _durations(stages)
    ends = _played(order, durations)
    place = {kind: index for index, part in enumerate(schedule.parts) for kind in part}
    counts = [[0] * len(schedule.parts) for _ in stages]
    rank = max(range(degree), key=lambda rank: ends[rank][-1])
    position = len(ends[rank]) - 1
    while True:
        step = order.ranks[rank][position]
        counts[step.stage][place[_COMPUTED[step.kind]]] += 1
        begun = ends[rank][position] - durations[step.stage][step.kind]
        if position and ends[rank][position - 1] == begun:
            position -= 1
        elif step.awaited is not None:
            rank, position = order.made[step.awaited]
        else:
            return counts


QUANTUM_S = 2.0**-50
"""Times are played in whole numbers of this, so that what takes equally long is equal."""

_ALIKE = 1e-12
"""Repetitions on shared cores that differ by no more of their length are alike; they come closer and closer."""

_COMPUTED = (Kind.FORWARD, Kind.BACKWARD, Kind.BACKWARD_INPUT, Kind.BACKWARD_WEIGHT)


class _Step(NamedTuple):
    """A computation in an order: stage and kind, by their places, and what it awaits and makes, numbered so that for
    the next micro-batch it is one more; None if nothing."""

    stage: int
    kind: int
    awaited: int | None
    result: int | None


@dataclass(frozen=True)
class _Order:
    """What all ranks do.

    Attributes:
        made: for each result, the rank that makes it, and the position in its order.
        ends: for each rank the position from which a forward would come that there is no micro-batch for.
        cuts: for each rank a position, at most that, before which nothing awaits what is behind one.
    """

    micro_batches: int
    ranks: tuple[tuple[_Step, ...], ...]
    made: dict[int, tuple[int, int]]
    ends: tuple[int, ...]
    cuts: tuple[int, ...]


@lru_cache(maxsize=64)
def _order(schedule: Schedule, degree: int, micro_batches: int, epilogue: bool = False) -> _Order:
    last = len(schedule.holders(degree)) - 1

    def number(result: Result | None) -> int | None:
        if result is None:
            return None
        direction, stage, micro_batch = result
        return (stage + (last + 1 if direction < 0 else 0)) * micro_batches + micro_batch

    firsts: dict[tuple[Kind, int], _Step] = {}
    ranks: list[tuple[_Step, ...]] = []
    ends: list[int] = []
    for actions in schedule.computations(degree, micro_batches, epilogue=epilogue):
        for first in (action for action in actions if action.micro_batch == 0):
            place = _COMPUTED.index(first.kind)
            step = _Step(first.stage, place, number(first.awaited(last)), number(first.result))
            firsts[first.kind, first.stage] = step
        ranks.append(tuple(_later(firsts[a.kind, a.stage], a.micro_batch) for a in actions))
        final = (i for i, a in enumerate(actions) if a.kind is Kind.FORWARD and a.micro_batch == micro_batches - 1)
        ends.append(next(final) + 1)
    made = {
        step.result: (rank, position)
        for rank, steps in enumerate(ranks)
        for position, step in enumerate(steps)
        if step.result is not None
    }
    return _Order(micro_batches, tuple(ranks), made, tuple(ends), _closed(ranks, made, ends))


def _closed(
    ranks: Sequence[Sequence[_Step]], made: Mapping[int, tuple[int, int]], ends: Sequence[int]
) -> tuple[int, ...]:
    """The last cuts, at most these, before which nothing awaits what is behind one."""
    cuts = [0] * len(ranks)
    moved = True
    while moved:
        moved = False
        for own, steps in enumerate(ranks):
            while cuts[own] < ends[own]:
                awaited = steps[cuts[own]].awaited
                if awaited is not None and made[awaited][1] >= cuts[made[awaited][0]]:
                    break
                cuts[own] += 1
                moved = True
    return tuple(cuts)


def _later(step: _Step, micro_batches: int) -> _Step:
    """The step so many micro-batches later."""
    stage, kind, awaited, result = step
    return _Step(
        stage,
        kind,
        None if awaited is None else awaited + micro_batches,
        None if result is None else result + micro_batches,
    )


def _played(order: _Order, durations: Sequence[Sequence[int]]) -> list[list[int]]:
    """When each computation of each rank ends."""
    done: dict[int | None, int] = {None: 0}
    ends: list[list[int]] = [[] for _ in order.ranks]
    clocks = [0] * len(order.ranks)
    waiting: dict[int | None, int] = {}
    runnable = list(reversed(range(len(order.ranks))))
    while runnable:
        rank = runnable.pop()
        steps, own, clock = order.ranks[rank], ends[rank], clocks[rank]
        while len(own) < len(steps):
            step = steps[len(own)]
            ready = done.get(step.awaited)
            if ready is None:
                waiting[step.awaited] = rank
                break
            clock = (ready if ready > clock else clock) + durations[step.stage][step.kind]
            own.append(clock)
            if step.result is not None:
                done[step.result] = clock
                if step.result in waiting:
                    runnable.append(waiting.pop(step.result))
        clocks[rank] = clock
    assert not waiting, "the order waits for itself"
    return ends


def _received_s(stage: MicroBatchTimes, kind: Kind) -> float:
    """Seconds of the message that a computation waits for."""
    return 0.0 if kind is Kind.BACKWARD_WEIGHT else stage.transfer_s / 2


def _durations(stages: Sequence[MicroBatchTimes]) -> tuple[tuple[int, ...], ...]:
    """Of each stage what its computations take, with the message that each waits for."""
    return tuple(
        tuple(round((stage.of(kind) + _received_s(stage, kind)) / QUANTUM_S) for kind in _COMPUTED) for stage in stages
    )


def _span(step: _Step, end: int, stages: Sequence[MicroBatchTimes]) -> Span:
    """When a computation happens that ends then, in which nobody disturbs it."""
    stage, kind, end_s = stages[step.stage], _COMPUTED[step.kind], end * QUANTUM_S
    computing_s = end_s - stage.of(kind)
    return Span(computing_s - _received_s(stage, kind), computing_s, end_s)


def _shared(order: _Order, stages: Sequence[MicroBatchTimes], pace: Pace) -> list[list[Span]]:
    """When each computation of each rank happens where ranks share cores: those that compute get equally much of these,
    and those that receive need none."""
    done: set[int | None] = {None}
    spans: list[list[Span]] = [[] for _ in order.ranks]
    left: dict[int, list[float]] = {}  # of a message and of what is computed then, for each rank that has begun
    begun: dict[int, list[float]] = {}  # when it has, and when it has received
    now_s = 0.0
    while True:
        for rank, steps in enumerate(order.ranks):
            place = len(spans[rank])
            if rank not in left and place < len(steps) and steps[place].awaited in done:
                stage, kind = stages[steps[place].stage], _COMPUTED[steps[place].kind]
                left[rank] = [_received_s(stage, kind), stage.of(kind)]
                begun[rank] = [now_s, now_s]
        if not left:
            return spans
        computing = sum(not receiving_s for receiving_s, _ in left.values())
        share = pace.shares[computing - 1] if computing else 1.0
        passed_s = min(receiving_s or computing_s * share for receiving_s, computing_s in left.values())
        now_s += passed_s
        for rank, (receiving_s, computing_s) in list(left.items()):
            if receiving_s:
                left[rank][0] = max(0.0, receiving_s - passed_s)
                begun[rank][1] = now_s
            elif computing_s * share > passed_s:
                left[rank][1] = computing_s - passed_s / share
            else:
                done.add(order.ranks[rank][len(spans[rank])].result)
                begin_s, computing_s = begun.pop(rank)
                spans[rank].append(Span(begin_s, computing_s, now_s))
                del left[rank]


def _repetition(order: _Order, ends: Sequence[Sequence[int]], unit: int) -> int | None:
    """How long each further repetition takes, of `unit` micro-batches, that is put in where the cuts are; None if those
    before are not equally long yet.

    A computation begins when the one before it on its rank has ended, and what it awaits has. What is before the cuts
    awaits only what is there too, so that it ends at the same time whatever is put in. Look at as many computations
    before each cut as anything from the last repetition on reaches back to. If each ends by the same time later than
    it did for `unit` micro-batches before, then so does, one after the other, all that is put in, and what is behind
    the cuts by as much as all that is put in takes.
    """
    lengths = [len(steps) * unit // order.micro_batches for steps in order.ranks]
    reach = 1
    for steps, cut, length in zip(order.ranks, order.cuts, lengths, strict=True):
        for step in steps[max(0, cut - length) :]:
            if step.awaited is not None:
                rank, position = order.made[step.awaited]
                reach = max(reach, order.cuts[rank] - position)
    found: int | None = None
    for rank, steps in enumerate(order.ranks):
        first, length = order.cuts[rank] - reach, lengths[rank]
        if first < length:
            return None
        if any(
            steps[position] != _later(steps[position - length], unit) for position in range(first, order.ends[rank])
        ):
            return None
        for position in range(first, order.cuts[rank]):
            later = ends[rank][position] - ends[rank][position - length]
            found = later if found is None else found
            if later != found:
                return None
    return found
