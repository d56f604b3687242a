"""What arithmetic over the batch size means: bounded, and exact in whole numbers. No text is evaluated as code."""

from __future__ import annotations

import math
from functools import lru_cache

import sympy

from galvatron.ir import limits
from galvatron.ir.types import BATCH, LOCAL_BATCH, MICRO_BATCHES

Number = int | float | sympy.Expr

SYMBOLS: dict[str, sympy.Expr] = {"B": BATCH, "b": LOCAL_BATCH, "m": MICRO_BATCHES}

FUNCTIONS = {
    "floor": sympy.floor,
    "ceiling": sympy.ceiling,
    "Mod": sympy.Mod,
    "Max": sympy.Max,
    "Min": sympy.Min,
    "Abs": sympy.Abs,
    "sqrt": sympy.sqrt,
    "log": sympy.log,
    # The exact tree, for an expression that sympy would write differently on its own: 2*(B + 1) becomes 2*B + 2.
    "Add": lambda *args: sympy.Add(*args, evaluate=False),
    "Mul": lambda *args: sympy.Mul(*args, evaluate=False),
    "Pow": lambda base, exponent: sympy.Pow(base, exponent, evaluate=False),
    "Integer": lambda value: sympy.Integer(value),
    "Float": lambda value: sympy.Float(value),
}
"""The functions an expression may call."""


class ExpressionError(ValueError):
    """Text that is arithmetic in form, but not in meaning; the parser turns it into a ParseError."""


@lru_cache(maxsize=4096, typed=True)
def combine(operator: str, left: Number, right: Number) -> Number:
    """`left operator right` for one of `+ - * / **`; ints stay ints.

    Raises:
        ExpressionError: not numbers, a division by zero, or a power that is not a small one.
    """
    _require_numbers(left, right)
    if isinstance(left, int) and isinstance(right, int) and operator in "+-*":
        return _short(left + right if operator == "+" else left - right if operator == "-" else left * right)
    a, b = _lift(left), _lift(right)
    if operator == "+":
        return _checked(a + b)
    if operator == "-":
        return _checked(a - b)
    if operator == "*":
        return _checked(a * b)
    if operator == "/":
        if b == 0:
            raise ExpressionError("division by zero")
        return _plain(_checked(a / b))
    if not (isinstance(b, sympy.Rational) and abs(b) <= limits.EXPONENT and b.q <= limits.EXPONENT):
        raise ExpressionError(f"the exponent must be a number of at most {limits.EXPONENT}")
    return _plain(_checked(a**b))


def negate(value: Number) -> Number:
    """`-value`."""
    _require_numbers(value)
    # There is one object for what equals nothing, so that texts read twice are equal.
    return math.nan if isinstance(value, float) and math.isnan(value) else -value


@lru_cache(maxsize=4096, typed=True)
def call(function: str, *args: Number) -> Number:
    """A function of `FUNCTIONS` applied to numbers.

    Raises:
        ExpressionError: an unknown function, wrong arguments, or an infinite result.
    """
    _require_numbers(*args)
    if function not in FUNCTIONS:
        raise ExpressionError(f"unknown function {function!r}; known: {', '.join(sorted(FUNCTIONS))}")
    lifted = [_lift(a) for a in args]
    if function == "Pow" and len(lifted) == 2:
        combine("**", lifted[0], lifted[1])
    try:
        result = FUNCTIONS[function](*lifted)
    except (TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise ExpressionError(f"{function}: {error}") from None
    if not isinstance(result, sympy.Expr):
        raise ExpressionError(f"{function} of these arguments is no number")
    return _checked(result)


def _require_numbers(*values: object) -> None:
    for value in values:
        if isinstance(value, bool) or not isinstance(value, (int, float, sympy.Expr)):
            raise ExpressionError("arithmetic on something that is no number")


def _lift(value: Number) -> sympy.Expr:
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ExpressionError("arithmetic on an infinite number")
        return sympy.Float(value)
    return sympy.Integer(value) if isinstance(value, int) else value


def _plain(value: sympy.Expr) -> Number:
    return int(value) if value.is_Integer else value


def _checked(value: sympy.Expr) -> sympy.Expr:
    if value.has(sympy.nan, sympy.oo, sympy.zoo, -sympy.oo):
        raise ExpressionError("the result is not finite")
    if value.has(sympy.I) or value.is_extended_real is False:
        raise ExpressionError("the result is no real number")
    _check_parts(value, 0)
    return value


def _check_parts(value: sympy.Basic, above: int) -> None:
    """Checks the numbers in an expression and how deep it nests."""
    if above > limits.EXPRESSION_DEPTH:
        raise ExpressionError(f"an expression nests deeper than {limits.EXPRESSION_DEPTH}")
    if isinstance(value, sympy.Rational):
        _short(int(value.p))
        _short(int(value.q))
    elif isinstance(value, sympy.Pow) and value.exp.is_number and abs(value.exp) > limits.EXPONENT:
        raise ExpressionError(f"a power of more than {limits.EXPONENT}")
    elif isinstance(value, sympy.Float) and not math.isfinite(float(value)):
        raise ExpressionError("a number is too large")
    for argument in value.args:
        _check_parts(argument, above + 1)


def _short(value: int) -> int:
    if value.bit_length() > limits.NUMBER_BITS:
        raise ExpressionError(f"a number has more than {limits.DIGITS} digits")
    return value
