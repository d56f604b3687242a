"""The best of several global batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from galvatron.errors import GalvatronError, PlanError
from galvatron.ir.documents import shown
from galvatron.ir.plan import Plan


def doubling(first: int, last: int) -> tuple[int, ...]:
    """A number and what doubling makes of it, up to another one, and that.

    Raises:
        GalvatronError: they are no range of numbers of samples.
    """
    if not (type(first) is int and type(last) is int and 1 <= first <= last):
        raise GalvatronError(f"a range of global batches is like 8..128, not {shown(first)}..{shown(last)}")
    sizes = [first]
    while 2 * sizes[-1] < last:
        sizes.append(2 * sizes[-1])
    return tuple(dict.fromkeys((*sizes, last)))


def most_throughput(sizes: Sequence[int], search: Callable[[int], Plan]) -> Plan:
    """Of the plans for several global batches, that with the most samples per second.

    Raises:
        PlanError: there is a plan for none; that of the first.
    """
    found: list[Plan] = []
    refused: list[PlanError] = []
    for size in sizes:
        try:
            found.append(search(size))
        except PlanError as error:
            refused.append(error)
    if not found:
        raise refused[0]
    return min(found, key=lambda plan: (plan.step_time_s or 0.0) / plan.global_batch_size)
