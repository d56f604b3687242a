"""Where messages between ranks stand among what the ranks compute."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from functools import lru_cache

from galvatron.schedules.actions import Action, Kind, Result
from galvatron.schedules.kinds import Schedule

SENDS_IN_FLIGHT = 2
"""Messages of one stage in one direction that may be under way: one arrives while the next is computed."""


@lru_cache(maxsize=64)
def orders(
    schedule: Schedule, degree: int, micro_batches: int, *, epilogue: bool = False
) -> tuple[tuple[Action, ...], ...]:
    """For each pipeline rank everything it does in one step, in order, with an epilogue before the first backward of
    the last stage.

    Raises:
        PlanError: the schedule cannot run so.
    """
    schedule.check(degree, micro_batches, epilogue=epilogue)
    holders = schedule.holders(degree)
    made = with_messages(schedule.computations(degree, micro_batches, epilogue=epilogue), holders)
    return tuple(_with_epilogue(order, len(holders) - 1) if epilogue else tuple(order) for order in made)


def with_messages(computations: Sequence[Sequence[Action]], holders: Sequence[int]) -> list[list[Action]]:
    """What each rank computes, and between that its messages; stages of one rank pass values on without any.

    The ranks take turns, each with its next computation if what that waits for is there. A result for a stage of
    another rank is sent at once, and received there before anything else. So all actions can be laid in one row in
    which the two ends of every message are neighbours, and each rank's order is a part of that row: ranks that carry
    out their orders one by one never wait in a circle, even if every send waits for its receive.
    """
    last = len(holders) - 1
    orders: list[list[Action]] = [[] for _ in computations]
    queues = [deque(own) for own in computations]
    there: set[Result | None] = {None}
    while any(queues):
        waiting = sum(map(len, queues))
        for rank, queue in enumerate(queues):
            if queue and queue[0].awaited(last) in there:
                action = queue.popleft()
                orders[rank].append(action)
                there.add(action.result)
                target = action.stage + action.direction
                if 0 <= target <= last and holders[target] != rank:
                    send, receive = _ENDS[action.direction]
                    orders[rank].append(Action(send, action.stage, action.micro_batch))
                    orders[holders[target]].append(Action(receive, target, action.micro_batch))
        assert sum(map(len, queues)) < waiting, "the computations of the ranks wait for each other"
    return orders


_ENDS = {1: (Kind.SEND_F, Kind.RECV_F), -1: (Kind.SEND_B, Kind.RECV_B)}
"""The two ends of a message, by direction."""


def _with_epilogue(order: Sequence[Action], last: int) -> tuple[Action, ...]:
    """The order of a rank with an epilogue, if it holds the last stage."""
    backwards = (Kind.BACKWARD, Kind.BACKWARD_INPUT)
    first = next((i for i, a in enumerate(order) if a.stage == last and a.kind in backwards), len(order))
    ends = [] if first == len(order) else [Action(Kind.EPILOGUE, last, 0)]
    return (*order[:first], *ends, *order[first:])
