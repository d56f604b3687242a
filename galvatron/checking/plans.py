"""Which plans of one strategy for all layers a program can have, each lowered and verified."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from galvatron.checking.found import FoundPlan
from galvatron.checking.whole import strategy_of
from galvatron.errors import GalvatronError, PlanError
from galvatron.ir.planned import PlanShorthand, with_plan
from galvatron.ir.program import Program
from galvatron.ir.verify import verify
from galvatron.partition.boundary import roles_of_graphs

MICRO_BATCHES = (1, 4)
"""Numbers that a report tries: whether there may be several at all, and whether a schedule takes them."""


def batch_for(program: Program, devices: int) -> int:
    """The least batch, not smaller than the example, that divides under every plan tried; the example's where the
    program does not hold for it."""
    parts = devices * max(MICRO_BATCHES)
    size = -(-program.batch_size // parts) * parts
    return size if size in program.batch_sizes else program.batch_size


def found_plans(program: Program, lowered: Callable[[Program], Program]) -> Iterator[FoundPlan]:
    """Every role on all devices of a pipeline rank, at every pipeline degree and some numbers of micro-batches.

    Args:
        program: with costs, on the cluster and for the batch that plans are for.
        lowered: the staged program of a planned one.
    """
    devices = program.required_cluster.world_size
    roles = roles_of_graphs(cls.graph for cls in program.classes)
    for degree in (d for d in range(1, devices + 1) if devices % d == 0):
        # On one device all roles are the same.
        for role in roles if degree < devices else ("dp",):
            yield from _found(program, degree, role, lowered)


def _found(program: Program, degree: int, role: str, lowered: Callable[[Program], Program]) -> Iterator[FoundPlan]:
    """The plans of a role at a pipeline degree. Micro-batches do not change what is lowered, so the plan with most of
    them is, and its reason holds for all."""
    strategy = strategy_of(role, program.required_cluster.world_size // degree)
    planned: dict[PlanShorthand, Program] = {}
    refused: dict[PlanShorthand, str] = {}
    for count in MICRO_BATCHES:
        shorthand = PlanShorthand(degree, count, None, strategy)
        try:
            planned[shorthand] = with_plan(program, shorthand)
        except PlanError as error:
            refused[shorthand] = str(error).replace(f"plan {str(shorthand)!r} has", "it has")
    if planned:
        try:
            verify(lowered(list(planned.values())[-1]))
        except GalvatronError as error:
            refused.update(dict.fromkeys(planned, str(error).partition("\n")[0]))
    for count in MICRO_BATCHES:
        shorthand = PlanShorthand(degree, count, None, strategy)
        yield FoundPlan(str(shorthand), refused.get(shorthand, ""))
