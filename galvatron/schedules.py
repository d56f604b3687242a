"""Pipeline schedules: which stages a pipeline rank holds, and what it does in which order.

`gpipe` and `1f1b` give every rank one stage. `interleaved2` (or 3, ...) gives rank r of P the stages r, r + P, ...
(Narayanan et al. 2021), `zbv` the stages r and 2P - 1 - r, and splits the backward into gradients of inputs and of
weights (Qi et al. 2024). The orders of the last two, and where messages stand in all of them, are those of
`torch.distributed.pipelining`. What runs is also what is priced: `runtime` and the cost model both ask here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

from galvatron.errors import PlanError, did_you_mean

SCHEDULES = ("gpipe", "1f1b", "interleaved2", "zbv")
"""What a plan may name, besides interleaved schedules of more stages."""

PATTERN = r"gpipe|1f1b|zbv|interleaved(?:[2-9]|[1-9][0-9]{1,5})"


class Kind(Enum):
    """What a rank does with one micro-batch on one of its stages; the values are torch's names.

    BACKWARD is the whole backward, BACKWARD_INPUT the part that the stage before waits for, BACKWARD_WEIGHT the rest.
    SEND_F and RECV_F move what the stage sends and receives, SEND_B and RECV_B its gradients. EPILOGUE is the end of a
    loss that couples samples, on the results of all micro-batches, forward and backward.
    """

    FORWARD = "FORWARD"
    BACKWARD = "FULL_BACKWARD"
    BACKWARD_INPUT = "BACKWARD_INPUT"
    BACKWARD_WEIGHT = "BACKWARD_WEIGHT"
    SEND_F = "SEND_F"
    RECV_F = "RECV_F"
    SEND_B = "SEND_B"
    RECV_B = "RECV_B"
    EPILOGUE = "EPILOGUE"


@dataclass(frozen=True)
class Action:
    """One step of a rank's order."""

    kind: Kind
    stage: int
    micro_batch: int


@dataclass(frozen=True)
class Schedule:
    """A schedule by name; `kind` is "gpipe", "1f1b", "interleaved" or "zbv"."""

    kind: str
    stages_per_rank: int = 1

    @staticmethod
    def parse(text: str) -> Schedule:
        """Reads a name such as `1f1b` or `interleaved3`.

        Raises:
            PlanError: there is no such schedule; suggests the nearest one.
        """
        if not isinstance(text, str) or not re.fullmatch(PATTERN, text):
            raise PlanError(f"unknown schedule {text!r}; {did_you_mean(str(text), SCHEDULES)}")
        if text.startswith("interleaved"):
            return Schedule("interleaved", int(text.removeprefix("interleaved")))
        return Schedule(text, 2 if text == "zbv" else 1)

    def __str__(self) -> str:
        return f"interleaved{self.stages_per_rank}" if self.kind == "interleaved" else self.kind

    @property
    def splits_backward(self) -> bool:
        """Whether gradients of weights are computed apart from those of inputs."""
        return self.kind == "zbv"

    def holders(self, degree: int) -> tuple[int, ...]:
        """For each stage of a pipeline of `degree` ranks, the rank that holds it."""
        count = degree * self.stages_per_rank
        if self.kind == "zbv":
            return tuple(min(stage, count - 1 - stage) for stage in range(count))
        return tuple(stage % degree for stage in range(count))

    def check(self, degree: int, micro_batches: int, *, epilogue: bool = False) -> None:
        """Checks that the schedule can run.

        Args:
            epilogue: whether the program has one, which needs all forwards before the first backward.

        Raises:
            PlanError: says which numbers of micro-batches, or how many ranks, can.
        """
        if micro_batches < 1:
            raise PlanError(f"a pipeline needs at least 1 micro-batch, not {micro_batches}")
        if self.stages_per_rank > 1 and degree < 2:
            raise PlanError(
                f"schedule {self} needs a pipeline of at least 2 ranks, not {degree}; use pp2 or more, or 1f1b"
            )
        if epilogue and micro_batches > 1 and self.kind != "gpipe":
            raise PlanError(
                f"schedule {self} begins backwards before the last forward, but the end of this loss needs the results "
                "of all micro-batches; use schedule gpipe, or 1 micro-batch (m1)"
            )
        if not self.allows(degree, micro_batches):
            below = self.most(degree, micro_batches)
            above = next(m for m in range(micro_batches, 2 * micro_batches + 1) if self.allows(degree, m))
            raise PlanError(
                f"schedule {self} on {degree} pipeline ranks takes micro-batches in rounds of equal size, of at least "
                f"{degree}: {micro_batches} micro-batches are {micro_batches // degree} rounds and a rest; "
                f"use m{below} or m{above}"
            )

    def allows(self, degree: int, micro_batches: int) -> bool:
        """Whether so many micro-batches can run: any number, but interleaved ones must divide into their rounds."""
        if self.kind != "interleaved":
            return True
        return micro_batches % max(1, micro_batches // degree) == 0

    def most(self, degree: int, limit: int) -> int:
        """The largest number of micro-batches up to `limit` that the schedule allows."""
        return next(m for m in range(limit, 0, -1) if self.allows(degree, m))


@lru_cache(maxsize=64)
def orders(
    schedule: Schedule, degree: int, micro_batches: int, *, epilogue: bool = False
) -> tuple[tuple[Action, ...], ...]:
    """For each pipeline rank everything it does in one step, in order, with an epilogue before the first backward of
    the last stage.

    Messages stand where both ends meet them in one order, so carrying the actions out one by one cannot deadlock.
    Stages of one rank pass values on without a message.
    """
    schedule.check(degree, micro_batches, epilogue=epilogue)
    if schedule.kind == "interleaved":
        found = _torch_order("ScheduleInterleaved1F1B", schedule, degree, micro_batches)
    elif schedule.kind == "zbv":
        found = _torch_order("ScheduleZBVZeroBubble", schedule, degree, micro_batches)
    else:
        found = _with_messages([_single(schedule, degree, rank, micro_batches, epilogue) for rank in range(degree)])
    kinds = {kind.value: kind for kind in Kind}
    made = (
        tuple(
            Action(kinds[a.computation_type.name], a.stage_index, a.microbatch_index)
            for a in found[rank]
            if a.computation_type.name in kinds  # the others are for FSDP
        )
        for rank in range(degree)
    )
    last = degree * schedule.stages_per_rank - 1
    return tuple(_with_epilogue(order, last) if epilogue else order for order in made)


def _with_epilogue(order: tuple[Action, ...], last: int) -> tuple[Action, ...]:
    """The order of a rank with an epilogue, if it holds the last stage."""
    backwards = (Kind.BACKWARD, Kind.BACKWARD_INPUT)
    first = next((i for i, a in enumerate(order) if a.stage == last and a.kind in backwards), None)
    return order if first is None else (*order[:first], Action(Kind.EPILOGUE, last, 0), *order[first:])


def in_flight(schedule: Schedule, degree: int, micro_batches: int, *, epilogue: bool = False) -> tuple[int, ...]:
    """For each stage, the most micro-batches that have gone forward and not all the way back at one time."""
    if schedule.stages_per_rank == 1:
        return tuple(_ahead(schedule, degree, rank, micro_batches, epilogue) for rank in range(degree))
    most = [0] * (degree * schedule.stages_per_rank)
    for order in orders(schedule, degree, micro_batches):
        for held in held_over_time(order):
            for stage, count in held.items():
                most[stage] = max(most[stage], count)
    return tuple(most)


def held_over_time(order: Sequence[Action]) -> list[dict[int, int]]:
    """After each forward of a rank, how many micro-batches each of its stages holds."""
    held: dict[int, int] = {}
    history: list[dict[int, int]] = []
    for action in order:
        if action.kind is Kind.FORWARD:
            held[action.stage] = held.get(action.stage, 0) + 1
            history.append(dict(held))
        elif action.kind in (Kind.BACKWARD, Kind.BACKWARD_WEIGHT):
            held[action.stage] -= 1
    return history


def _ahead(schedule: Schedule, degree: int, rank: int, micro_batches: int, epilogue: bool) -> int:
    """How many forwards a rank with one stage makes before its first backward; one rank alone has none to wait for,
    but those that an epilogue needs."""
    if schedule.kind == "gpipe" and (degree > 1 or epilogue):
        return micro_batches
    return min(degree - rank, micro_batches)


def _single(
    schedule: Schedule, degree: int, rank: int, micro_batches: int, epilogue: bool
) -> list[tuple[str, int, int]]:
    """The computations of a rank with one stage: forwards as far ahead as the schedule goes, then in turn."""
    ahead = _ahead(schedule, degree, rank, micro_batches, epilogue)
    order = [("FORWARD", rank, m) for m in range(ahead)]
    for m in range(micro_batches):
        order.append(("FULL_BACKWARD", rank, m))
        if m + ahead < micro_batches:
            order.append(("FORWARD", rank, m + ahead))
    return order


def _with_messages(computations: list[list[tuple[str, int, int]]]) -> dict[int, list[Any]]:
    from torch.distributed.pipelining import schedules as torch_schedules

    kinds = torch_schedules._ComputationType
    actions = {
        rank: [torch_schedules._Action(stage, kinds[kind], m) for kind, stage, m in order]
        for rank, order in enumerate(computations)
    }
    return torch_schedules._add_send_recv(actions, lambda stage: stage, len(computations))


def _torch_order(name: str, schedule: Schedule, degree: int, micro_batches: int) -> dict[int, list[Any]]:
    from torch.distributed.pipelining import schedules as torch_schedules
    from torch.nn import Module

    # The constructor only asks its stages how many they are; no process group is needed.
    count = degree * schedule.stages_per_rank
    stages = [
        SimpleNamespace(num_stages=count, group_size=degree, group_rank=0, stage_index=0, submod=Module())
        for _ in range(schedule.stages_per_rank)
    ]
    return getattr(torch_schedules, name)(stages, micro_batches).pipeline_order_with_comms
