"""How long a pipeline takes whose ranks carry out a schedule: its actions played through, each as soon as it can."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from galvatron.schedules import Kind, Schedule, orders


@dataclass(frozen=True)
class StageTimes:
    """Seconds of one micro-batch on one stage: forward, the backward up to the gradients that the stage before waits
    for, and the rest of the backward. What the stage receives is counted in them."""

    forward_s: float
    input_s: float
    weight_s: float

    @property
    def micro_batch_s(self) -> float:
        """Seconds of one micro-batch, forward and backward."""
        return self.forward_s + self.input_s + self.weight_s

    def of(self, kind: Kind) -> float:
        """Seconds of an action; messages go on beside the computation."""
        if kind is Kind.FORWARD:
            return self.forward_s
        if kind is Kind.BACKWARD:
            return self.input_s + self.weight_s
        return {Kind.BACKWARD_INPUT: self.input_s, Kind.BACKWARD_WEIGHT: self.weight_s}.get(kind, 0.0)


def pipeline_s(schedule: Schedule, degree: int, micro_batches: int, stages: Sequence[StageTimes]) -> float:
    """Seconds from the first forward to the last backward of all micro-batches.

    GPipe and 1F1B take `Σ stages + (m - 1) · max stage`: every stage once, then the slowest m - 1 times (Narayanan et
    al. 2021). With several stages on a rank the order is played through.
    """
    if schedule.stages_per_rank == 1:
        times = [stage.micro_batch_s for stage in stages]
        return sum(times) + (micro_batches - 1) * max(times)
    queues = [
        [action for action in order if action.kind in _COMPUTED] for order in orders(schedule, degree, micro_batches)
    ]
    done: dict[tuple[bool, int, int], float] = {}
    positions, clocks = [0] * degree, [0.0] * degree
    while any(position < len(queue) for position, queue in zip(positions, queues, strict=True)):
        before = list(positions)
        for rank, queue in enumerate(queues):
            while positions[rank] < len(queue):
                action = queue[positions[rank]]
                start_s = clocks[rank]
                if action.kind is not Kind.BACKWARD_WEIGHT:
                    forward = action.kind is Kind.FORWARD
                    source = action.stage - 1 if forward else action.stage + 1
                    if 0 <= source < len(stages):
                        ready_s = done.get((forward, source, action.micro_batch))
                        if ready_s is None:
                            break
                        start_s = max(start_s, ready_s)
                    done[forward, action.stage, action.micro_batch] = start_s + stages[action.stage].of(action.kind)
                clocks[rank] = start_s + stages[action.stage].of(action.kind)
                positions[rank] += 1
        assert positions != before, f"the order of {schedule} waits for itself"
    return max(clocks)


_COMPUTED = (Kind.FORWARD, Kind.BACKWARD, Kind.BACKWARD_INPUT, Kind.BACKWARD_WEIGHT)
