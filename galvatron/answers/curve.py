"""The fastest plan under each of several budgets."""

from __future__ import annotations

from collections.abc import Callable

from galvatron.errors import BudgetError, GalvatronError
from galvatron.ir.plan import Plan
from galvatron.units import parse_bytes

POINTS = 9
"""Budgets of a curve, its ends included."""


def read_budgets(text: str) -> tuple[int, ...]:
    """Budgets evenly spread over a range, `12..16GiB`, or the one that text says.

    Raises:
        GalvatronError: neither sizes nor a range of them.
    """
    first, dots, last = text.partition("..")
    if not dots:
        return (parse_bytes(text),)
    unit = last.strip().lstrip("0123456789. ")
    begin, end = parse_bytes(first if first.strip()[-1:].isalpha() else first + unit), parse_bytes(last)
    if not 0 < begin < end:
        raise GalvatronError(f"a range of budgets is like 12..16GiB, not {text!r}")
    return tuple(begin + (end - begin) * point // (POINTS - 1) for point in range(POINTS))


def curve(budgets: tuple[int, ...], search: Callable[[int], Plan]) -> tuple[tuple[int, Plan | None], ...]:
    """Budgets with the fastest plan that fits; None where none does."""

    def best(budget: int) -> Plan | None:
        try:
            return search(budget)
        except BudgetError:
            return None

    return tuple((budget, best(budget)) for budget in budgets)
