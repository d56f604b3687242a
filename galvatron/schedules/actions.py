"""What a pipeline rank does, action by action, and what an action waits for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise


class Kind(Enum):
    """What a rank does with one micro-batch on one of its stages.

    BACKWARD is the whole backward, BACKWARD_INPUT the part that the stage before waits for, BACKWARD_WEIGHT the rest.
    SEND_F and RECV_F move what the stage sends and receives, SEND_B and RECV_B its gradients. EPILOGUE is the end of a
    loss that couples samples, on the results of all micro-batches, forward and backward.
    """

    FORWARD = "forward"
    BACKWARD = "backward"
    BACKWARD_INPUT = "backward of inputs"
    BACKWARD_WEIGHT = "backward of weights"
    SEND_F = "send values"
    RECV_F = "receive values"
    SEND_B = "send gradients"
    RECV_B = "receive gradients"
    EPILOGUE = "epilogue"


_DIRECTION = {Kind.FORWARD: 1, Kind.BACKWARD: -1, Kind.BACKWARD_INPUT: -1}

Result = tuple[int, int, int]
"""What a neighbouring stage waits for: the direction in which it goes, the stage that makes it, and the micro-batch."""


@dataclass(frozen=True)
class Action:
    """One step of a rank's order."""

    kind: Kind
    stage: int
    micro_batch: int

    @property
    def computes(self) -> bool:
        """Whether this is no message."""
        return self.kind not in (Kind.SEND_F, Kind.RECV_F, Kind.SEND_B, Kind.RECV_B)

    @property
    def direction(self) -> int:
        """Where the result of a computation goes: to the next stage (1), to the one before (-1), or nowhere (0)."""
        return _DIRECTION.get(self.kind, 0)

    @property
    def releases(self) -> bool:
        """Whether activations of the micro-batch are gone after it."""
        return self.kind in (Kind.BACKWARD, Kind.BACKWARD_WEIGHT)

    @property
    def result(self) -> Result | None:
        """What a computation makes for a neighbouring stage; None if nothing."""
        return (self.direction, self.stage, self.micro_batch) if self.direction else None

    def awaited(self, last: int) -> Result | None:
        """What a computation needs of a neighbouring stage, when `last` is the last stage; None if nothing."""
        source = self.stage - self.direction
        return (self.direction, source, self.micro_batch) if self.direction and 0 <= source <= last else None


Computation = tuple[Kind, int]
"""What a rank computes on which stage, before it is known for which micro-batch."""


def numbered(computations: Iterable[Computation], micro_batches: int) -> tuple[Action, ...]:
    """The computations of a rank with their micro-batches: each kind on each stage takes them in their order.

    What comes after the last micro-batch is left out.
    """
    counts: dict[Computation, int] = {}
    actions: list[Action] = []
    for computation in computations:
        count = counts.get(computation, 0)
        if count < micro_batches:
            actions.append(Action(*computation, count))
        counts[computation] = count + 1
    return tuple(actions)


def in_turn(forwards: Sequence[int], backwards: Sequence[int], ahead: int) -> list[Computation]:
    """So many forwards ahead, then a backward and a forward in turn; `forwards` and `backwards` are stages."""
    computations = [(Kind.FORWARD, stage) for stage in forwards[:ahead]]
    for done, stage in enumerate(backwards):
        computations.append((Kind.BACKWARD, stage))
        computations += [(Kind.FORWARD, stage) for stage in forwards[ahead + done : ahead + done + 1]]
    return computations


def held_over_time(order: Sequence[Action]) -> list[dict[int, int]]:
    """After each forward of a rank, how many micro-batches each of its stages holds."""
    held: Counter[int] = Counter()
    history: list[dict[int, int]] = []
    for action in order:
        if action.kind is Kind.FORWARD:
            held[action.stage] += 1
            history.append(dict(held))
        elif action.releases:
            held[action.stage] -= 1
    return history


def at_turn(order: Sequence[Action], last: int) -> frozenset[int]:
    """The micro-batches whose forward in stage `last` is followed by a backward there before the rank computes anything
    else."""
    computed = [action for action in order if action.computes]
    return frozenset(
        action.micro_batch
        for action, following in pairwise(computed)
        if action.kind is Kind.FORWARD and action.stage == following.stage == last
        if following.direction < 0
    )
