"""How long a pipeline takes whose ranks carry out a schedule: its actions played through, each as soon as it can."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from galvatron.schedules import Kind, Schedule


@dataclass(frozen=True)
class MicroBatchTimes:
    """Seconds of one micro-batch, on a layer or a stage: forward, the backward up to the gradients that the stage
    before waits for, and the rest of the backward. What a stage receives is counted in them."""

    forward_s: float
    input_s: float
    weight_s: float

    @property
    def micro_batch_s(self) -> float:
        """Seconds of one micro-batch, forward and backward."""
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

    def phases(self, schedule: Schedule) -> tuple[float, ...]:
        """Seconds in each phase of a schedule; all in one where it has none."""
        if not schedule.phases:
            return (self.micro_batch_s,)
        return tuple(sum(map(self.of, phase)) for phase in schedule.phases)


def pipeline_s(schedule: Schedule, degree: int, micro_batches: int, stages: Sequence[MicroBatchTimes]) -> float:
    """Seconds from the first forward to the last backward of all micro-batches, by phases where a schedule has them."""
    if not schedule.phases:
        return played_s(schedule, degree, micro_batches, stages)
    phases = zip(*(stage.phases(schedule) for stage in stages), strict=True)
    return sum(sum(times) + (micro_batches - 1) * max(times) for times in phases)


def played_s(schedule: Schedule, degree: int, micro_batches: int, stages: Sequence[MicroBatchTimes]) -> float:
    """The same with every computation played through; messages go on beside them."""
    queues = schedule.computations(degree, micro_batches)
    last = len(stages) - 1
    done_s: dict[object, float] = {None: 0.0}
    positions, clocks_s = [0] * degree, [0.0] * degree
    while any(position < len(queue) for position, queue in zip(positions, queues, strict=True)):
        before = list(positions)
        for rank, queue in enumerate(queues):
            while positions[rank] < len(queue):
                action = queue[positions[rank]]
                ready_s = done_s.get(action.awaited(last))
                if ready_s is None:
                    break
                clocks_s[rank] = max(clocks_s[rank], ready_s) + stages[action.stage].of(action.kind)
                if action.result is not None:
                    done_s[action.result] = clocks_s[rank]
                positions[rank] += 1
        assert positions != before, f"the order of {schedule} waits for itself"
    return max(clocks_s)
