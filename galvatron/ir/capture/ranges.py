"""For which values of a size a traced model holds: read off the conditions that the trace has met."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import sympy
from torch.utils._sympy.functions import Max, Min

from galvatron.ir.types import BATCH, LARGE, BatchSizes

_TRIED = (*range(2, 66), LARGE)
"""The batch sizes for which a condition that is no simple inequality must hold."""


class NoSamplesError(ValueError):
    """The model fixes dim 0 of every input that could hold samples, or holds for no range of batch sizes. Its text says
    what the user can do besides mending that, if anything."""


def settled(size: sympy.Expr, example: Mapping[sympy.Symbol, int]) -> tuple[sympy.Expr, list[sympy.Basic]]:
    """A size without `Min` and `Max`, as it is near that of the example, and the conditions under which it is."""
    conditions: list[sympy.Basic] = []

    def chosen(extreme: sympy.Basic) -> sympy.Basic:
        largest = isinstance(extreme, (Max, sympy.Max))
        found = (max if largest else min)(extreme.args, key=lambda one: float(one.subs(example)))  # type: ignore[arg-type]  # numbers
        compare = sympy.Ge if largest else sympy.Le
        conditions.extend(compare(found, other) for other in extreme.args if other != found)
        return found

    found = size.replace(lambda part: isinstance(part, (Max, Min, sympy.Max, sympy.Min)), chosen)
    assert isinstance(found, sympy.Expr)
    return found, conditions


def batch_sizes(conditions: Iterable[sympy.Basic], example: int = 2) -> BatchSizes:
    """The batch sizes at which all conditions hold, on the side of that of the example.

    Raises:
        NoSamplesError: that is no range with a few gaps, as with a size that must divide.
    """
    found = BatchSizes()
    for condition in (part for whole in conditions for part in sympy.And.make_args(whole)):
        if condition.free_symbols != {BATCH}:
            continue
        for part in [condition] if is_range(condition) else _parts(condition, example):
            if not is_range(part):
                raise NoSamplesError
            found &= _linear(part) or BatchSizes()
    # Traced for at least two samples; what holds for two is taken to hold for one.
    return replace(found, least=1) if found.least <= 2 else found


def _parts(condition: sympy.Basic, example: int) -> list[sympy.Basic]:
    """A comparison of the larger or smaller of two sizes, as several without."""
    if not isinstance(condition, sympy.core.relational.Relational):
        return [condition]
    left, first = settled(condition.lhs, {BATCH: example})  # type: ignore[arg-type]  # both sides are numbers
    right, second = settled(condition.rhs, {BATCH: example})  # type: ignore[arg-type]
    return [part for part in (*first, *second, condition.func(left, right)) if part != sympy.true]


def is_range(condition: sympy.Basic) -> bool:
    """Whether a condition on the batch size is an inequality, or none at all."""
    known = _linear(condition) is not None
    return known or all(condition.subs(BATCH, n) != sympy.false for n in _TRIED)


def _compared(condition: sympy.Basic) -> sympy.Basic:
    """`a <= b` for `min(a, b) == a`, and the like; other conditions as they are."""
    if isinstance(condition, (sympy.Eq, sympy.Ne)):
        for extreme, one in (condition.args, condition.args[::-1]):
            if isinstance(extreme, (Min, Max)) and len(extreme.args) == 2 and one in extreme.args:
                (other,) = (arg for arg in extreme.args if arg != one)
                holds = sympy.Le(one, other) if isinstance(extreme, Min) else sympy.Ge(one, other)
                return holds if isinstance(condition, sympy.Eq) else sympy.Not(holds)
    return condition


def _linear(condition: sympy.Basic) -> BatchSizes | None:
    """The batch sizes that a condition on a multiple of it allows; None for other conditions."""
    condition = _compared(condition)
    if not isinstance(condition, (sympy.Ge, sympy.Gt, sympy.Le, sympy.Lt, sympy.Ne)):
        return None
    difference = sympy.expand(condition.lhs - condition.rhs)  # type: ignore[operator]  # both sides are numbers
    slope, offset = difference.coeff(BATCH, 1), difference.coeff(BATCH, 0)
    if not (slope.is_Rational and offset.is_Rational and slope) or difference != slope * BATCH + offset:
        return None
    border = -offset / slope
    if isinstance(condition, sympy.Ne):
        return BatchSizes(but=(int(border),) if border.is_Integer and border > 0 else ())
    strict = isinstance(condition, (sympy.Gt, sympy.Lt))
    if (slope > 0) == isinstance(condition, (sympy.Ge, sympy.Gt)):
        return BatchSizes(least=max(int(sympy.floor(border)) + 1 if strict else int(sympy.ceiling(border)), 1))
    return BatchSizes(most=int(sympy.ceiling(border)) - 1 if strict else int(sympy.floor(border)))
