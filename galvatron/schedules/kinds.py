"""The schedules: what each of them is, in a few lines with one interface. A new one is a class and a line in `_KNOWN`.

A rank computes the micro-batches of a stage in their order, so an order says only which stage comes next: every `ahead`
is a number of forwards before the first backward.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

from galvatron.errors import PlanError, did_you_mean
from galvatron.schedules.actions import Action, Computation, Kind, held_over_time, in_turn, numbered


class Schedule(ABC):
    """How a pipeline of `degree` ranks carries out the micro-batches of a step."""

    pattern: ClassVar[str]
    """Of its names; groups in it are the numbers that the class is made from."""

    stages_per_rank: int

    splits_backward: ClassVar[bool] = False
    """Whether gradients of weights are computed apart from those of inputs."""

    forwards_first: ClassVar[bool] = False
    """Whether all forwards can come before the first backward, as an epilogue needs it."""

    phases: ClassVar[tuple[tuple[Kind, ...], ...]] = ()
    """Where a step's time is separable: what goes through the whole pipeline together, phase after phase. A phase takes
    `Σ stages + (micro-batches - 1) · max stage`. Empty where the order must be played through."""

    @property
    def parts(self) -> tuple[tuple[Kind, ...], ...]:
        """What of a stage's time is told apart: its phases, or all kinds of computations."""
        if self.phases:
            return self.phases
        if self.splits_backward:
            return (Kind.FORWARD,), (Kind.BACKWARD_INPUT,), (Kind.BACKWARD_WEIGHT,)
        return (Kind.FORWARD,), (Kind.BACKWARD,)

    @staticmethod
    def parse(text: str) -> Schedule:
        """Reads a name such as `1f1b` or `interleaved3`.

        Raises:
            PlanError: there is no such schedule; suggests the nearest one.
        """
        for known in _KNOWN if isinstance(text, str) else ():
            if match := re.fullmatch(known.pattern, text):
                return type(known)(*map(int, match.groups()))
        raise PlanError(f"unknown schedule {text!r}; {did_you_mean(str(text), SCHEDULES)}")

    def __str__(self) -> str:
        return self.pattern

    def holders(self, degree: int) -> tuple[int, ...]:
        """For each stage, the rank that holds it."""
        return tuple(stage % degree for stage in range(degree * self.stages_per_rank))

    @abstractmethod
    def order(self, degree: int, rank: int, micro_batches: int, epilogue: bool) -> Sequence[Computation]:
        """What a rank computes, stage by stage; more than there are micro-batches is left out."""

    @lru_cache(maxsize=16)  # noqa: B019  # a schedule is a value of a few numbers
    def computations(
        self, degree: int, micro_batches: int, *, epilogue: bool = False
    ) -> tuple[tuple[Action, ...], ...]:
        """For each rank what it computes in one step, in order, but for an epilogue."""
        orders = (self.order(degree, rank, micro_batches, epilogue) for rank in range(degree))
        return tuple(numbered(order, micro_batches) for order in orders)

    @lru_cache(maxsize=256)  # noqa: B019
    def in_flight(self, degree: int, micro_batches: int, *, epilogue: bool = False) -> tuple[int, ...]:
        """For each stage, the most micro-batches that have gone forward and not all the way back at one time."""
        most = [0] * (degree * self.stages_per_rank)
        micro_batches = self.shorter(degree, micro_batches, 1)
        for order in self.computations(degree, micro_batches, epilogue=epilogue):
            for held in held_over_time(order):
                for stage, count in held.items():
                    most[stage] = max(most[stage], count)
        return tuple(most)

    def turns(self, degree: int, micro_batches: int, *, epilogue: bool = False) -> int:
        """How many forwards of the last stage its own backward follows at once."""
        return 0 if epilogue else micro_batches

    def shorter(self, degree: int, micro_batches: int, repetitions: int) -> int:
        """Fewer micro-batches whose order is the same but for repetitions: what a rank does between its first backward
        and the last forward of one of its stages comes again and again, and so many times are left at least.

        All of them where no more than that would be left out.
        """
        return micro_batches

    def refusal(self, degree: int, micro_batches: int, *, epilogue: bool = False) -> str | None:
        """Why the schedule cannot run so, and which numbers of micro-batches or ranks can; None if it can."""
        if micro_batches < 1:
            return f"a pipeline needs at least 1 micro-batch, not {micro_batches}"
        if self.stages_per_rank > 1 and degree < 2:
            return f"schedule {self} needs a pipeline of at least 2 ranks, not {degree}; use pp2 or more, or 1f1b"
        if epilogue and micro_batches > 1 and not self.forwards_first:
            return (
                f"schedule {self} begins backwards before the last forward, but the end of this loss needs the results "
                "of all micro-batches; use schedule gpipe, or 1 micro-batch (m1)"
            )
        return None

    def allows(self, degree: int, micro_batches: int, *, epilogue: bool = False) -> bool:
        """Whether the schedule can run so."""
        return self.refusal(degree, micro_batches, epilogue=epilogue) is None

    def check(self, degree: int, micro_batches: int, *, epilogue: bool = False) -> None:
        """
        Args:
            epilogue: whether the program has one, which needs all forwards before the first backward.

        Raises:
            PlanError: the schedule cannot run so: its `refusal`.
        """
        if problem := self.refusal(degree, micro_batches, epilogue=epilogue):
            raise PlanError(problem)


class _OneStage(Schedule):
    """One stage per rank, which goes so many forwards ahead."""

    stages_per_rank = 1

    @abstractmethod
    def ahead(self, degree: int, rank: int, micro_batches: int, epilogue: bool) -> int:
        """How many forwards a rank makes before its first backward."""

    def order(self, degree: int, rank: int, micro_batches: int, epilogue: bool) -> Sequence[Computation]:
        own = [rank] * micro_batches
        return in_turn(own, own, self.ahead(degree, rank, micro_batches, epilogue))

    def in_flight(self, degree: int, micro_batches: int, *, epilogue: bool = False) -> tuple[int, ...]:
        ranks = range(degree)
        return tuple(min(self.ahead(degree, rank, micro_batches, epilogue), micro_batches) for rank in ranks)


@dataclass(frozen=True)
class GPipe(_OneStage):
    """All forwards, then all backwards (Huang et al. 2019); a rank alone has nobody to wait for but an epilogue."""

    pattern = "gpipe"
    forwards_first = True
    phases = ((Kind.FORWARD,), (Kind.BACKWARD,))

    def ahead(self, degree: int, rank: int, micro_batches: int, epilogue: bool) -> int:
        return micro_batches if degree > 1 or epilogue else 1

    def turns(self, degree: int, micro_batches: int, *, epilogue: bool = False) -> int:
        most = super().turns(degree, micro_batches, epilogue=epilogue)
        return min(most, 1) if degree > 1 else most


@dataclass(frozen=True)
class OneForwardOneBackward(_OneStage):
    """Forwards until the first backward can arrive, then one of each in turn (Narayanan et al. 2019).

    Its time is that of one phase when all stages take equally long, however that divides into forward and backward. In
    general it is off by at most what the stages together take less than that.
    """

    pattern = "1f1b"
    phases = ((Kind.FORWARD, Kind.BACKWARD),)

    def ahead(self, degree: int, rank: int, micro_batches: int, epilogue: bool) -> int:
        return degree - rank

    def shorter(self, degree: int, micro_batches: int, repetitions: int) -> int:
        return min(micro_batches, degree + repetitions)


@dataclass(frozen=True)
class Interleaved(Schedule):
    """1F1B on rank r of P with the stages r, r + P, ..., which a round of micro-batches runs one after the other
    (Narayanan et al. 2021)."""

    stages_per_rank: int

    pattern = "interleaved([2-9]|[1-9][0-9]{1,5})"

    def __str__(self) -> str:
        return f"interleaved{self.stages_per_rank}"

    def order(self, degree: int, rank: int, micro_batches: int, epilogue: bool) -> Sequence[Computation]:
        rounds = _rounds(degree, micro_batches)
        size = micro_batches // rounds
        own = range(rank, degree * self.stages_per_rank, degree)
        forwards = [stage for stage in own for _ in range(size)] * rounds
        backwards = [stage for stage in reversed(own) for _ in range(size)] * rounds
        return in_turn(forwards, backwards, (self.stages_per_rank - 1) * size + 2 * (degree - 1 - rank) + 1)

    def shorter(self, degree: int, micro_batches: int, repetitions: int) -> int:
        # A rank goes less than two rounds ahead, and in the last one its first stage is done before the others.
        rounds = _rounds(degree, micro_batches)
        return micro_batches // rounds * min(rounds, 3 + repetitions)

    def refusal(self, degree: int, micro_batches: int, *, epilogue: bool = False) -> str | None:
        problem = super().refusal(degree, micro_batches, epilogue=epilogue)
        if problem or _in_rounds(degree, micro_batches):
            return problem
        below = next(m for m in range(micro_batches, 0, -1) if _in_rounds(degree, m))
        above = next(m for m in range(micro_batches, 2 * micro_batches + 1) if _in_rounds(degree, m))
        return (
            f"schedule {self} on {degree} pipeline ranks takes micro-batches in rounds of equal size, of at least "
            f"{degree}: {micro_batches} micro-batches are {_rounds(degree, micro_batches)} rounds and a rest; "
            f"use m{below} or m{above}"
        )


def _rounds(degree: int, micro_batches: int) -> int:
    """As many rounds as can have a micro-batch for every rank; fewer micro-batches are one round."""
    return max(1, micro_batches // degree)


def _in_rounds(degree: int, micro_batches: int) -> bool:
    return micro_batches % _rounds(degree, micro_batches) == 0


@dataclass(frozen=True)
class ZeroBubbleV(Schedule):
    """The stages of rank r of P are r, on the way there, and 2P - 1 - r, on the way back; gradients of weights, for
    which nobody waits, are computed when there is nothing else (ZB-V, Qi et al. 2024, section 6)."""

    pattern = "zbv"
    stages_per_rank = 2
    splits_backward = True

    def holders(self, degree: int) -> tuple[int, ...]:
        return (*range(degree), *reversed(range(degree)))

    def shorter(self, degree: int, micro_batches: int, repetitions: int) -> int:
        return min(micro_batches, 2 * degree + repetitions)

    def order(self, degree: int, rank: int, micro_batches: int, epilogue: bool) -> Sequence[Computation]:
        there, back = rank, 2 * degree - 1 - rank
        left = degree - rank
        # With fewer micro-batches the order is the same, and what there is not is left out.
        steady = max(2 * degree - 1, micro_batches) - degree
        forward = {stage: [(Kind.FORWARD, stage)] for stage in (there, back)}
        inputs = {stage: [(Kind.BACKWARD_INPUT, stage)] for stage in (there, back)}
        weights = {stage: [(Kind.BACKWARD_WEIGHT, stage)] for stage in (there, back)}
        whole = {stage: inputs[stage] + weights[stage] for stage in (there, back)}
        return [
            *forward[there] * (2 * left - 1),
            *(forward[back] + forward[there]) * rank,
            *(forward[back] + whole[back]) * left,
            *(forward[there] + whole[there] + forward[back] + whole[back]) * steady,
            *(inputs[there] + inputs[back]) * rank,
            *whole[there] * left,
            *weights[back] * rank,
            *weights[there] * rank,
        ]


_KNOWN: tuple[Schedule, ...] = (GPipe(), OneForwardOneBackward(), Interleaved(2), ZeroBubbleV())

SCHEDULES = tuple(map(str, _KNOWN))
"""What a plan may name, besides interleaved schedules of more stages."""

PATTERN = "|".join(known.pattern for known in _KNOWN)


def default_schedule(micro_batches: int, *, epilogue: bool) -> Schedule:
    """The schedule of a plan that names none: 1F1B, which needs no more memory and no more time than GPipe, where the
    end of the loss does not need all forwards first."""
    schedule = OneForwardOneBackward()
    return schedule if schedule.allows(1, micro_batches, epilogue=epilogue) else GPipe()
