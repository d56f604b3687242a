"""What tells ops apart, and so layers: two that are equal share a class, and one computation."""

from __future__ import annotations

import math
from itertools import combinations

import pytest

from galvatron.ir.graph import Arg, Op, Ref


def op(arg: Arg) -> Op:
    return Op("aten.copysign.Scalar", (Ref("x"),), (("other", (arg,)),), ())


@pytest.mark.parametrize(("one", "other"), [*combinations([0, False, 0.0, -0.0], 2)])
def test_arguments_that_python_takes_for_equal_are_told_apart(one: Arg, other: Arg) -> None:
    assert one == other
    assert op(one) != op(other)


def test_an_argument_that_python_takes_for_unequal_to_itself_is_equal() -> None:
    assert op(math.nan) == op(float("nan"))
