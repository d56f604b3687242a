"""Numbers that are computed from the batch size: torch's symbolic functions as those of the IR."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import sympy

from galvatron.ir.types import exact_quotient

_MAX_DENOMINATOR = 64
"""Of an exponent that the text of a program can say."""


class NumberError(ValueError):
    """A function of the batch size that a program cannot say; the message names it."""


def plain_number(expression: sympy.Expr) -> sympy.Expr:
    """An expression of torch in plain arithmetic.

    Raises:
        NumberError: it uses a function that is none of arithmetic, rounding, roots and logarithms.
    """
    if not expression.args:
        return sympy.Float(float(expression)) if expression.is_Float else expression
    args = [plain_number(a) for a in expression.args]  # type: ignore[arg-type]  # numbers are made of numbers
    name = type(expression).__name__
    if name in _FUNCTIONS:
        return _FUNCTIONS[name](*args)
    if isinstance(expression, (sympy.Add, sympy.Mul, sympy.Pow)):
        return expression.func(*args)
    raise NumberError(name)


def _quotient(dividend: sympy.Expr, divisor: sympy.Expr) -> sympy.Expr:
    exact = exact_quotient(dividend, divisor)
    if exact is not None:
        return sympy.sympify(exact)
    # A rational factor stands for a size that divides; a number need not.
    return dividend * sympy.Float(1 / divisor) if divisor.is_number else dividend / divisor


def _floor(dividend: sympy.Expr, divisor: sympy.Expr) -> sympy.Expr:
    exact = exact_quotient(dividend, divisor)
    return sympy.floor(dividend / divisor) if exact is None else sympy.sympify(exact)


def _power(base: sympy.Expr, exponent: sympy.Expr) -> sympy.Expr:
    if not exponent.is_number:
        raise NumberError("a power with the batch size as exponent")
    fraction = Fraction(float(exponent))
    if fraction.denominator > _MAX_DENOMINATOR or abs(fraction) > _MAX_DENOMINATOR:
        raise NumberError(f"a power with exponent {exponent}")
    return base ** sympy.Rational(fraction.numerator, fraction.denominator)


_FUNCTIONS: dict[str, Callable[..., sympy.Expr]] = {
    "ToFloat": lambda x: x,
    "FloatTrueDiv": _quotient,
    "IntTrueDiv": _quotient,
    "FloorDiv": _floor,
    "CleanDiv": _floor,
    "CeilDiv": lambda x, y: -_floor(-x, y),
    "FloorToInt": sympy.floor,
    "CeilToInt": sympy.ceiling,
    "PythonMod": sympy.Mod,
    "Mod": sympy.Mod,
    "Max": sympy.Max,
    "Min": sympy.Min,
    "Abs": sympy.Abs,
    "FloatPow": _power,
    "PowByNatural": _power,
    "OpaqueUnaryFn_sqrt": sympy.sqrt,
    "OpaqueUnaryFn_log": sympy.log,
    "OpaqueUnaryFn_log2": lambda x: sympy.log(x) * sympy.Float(1 / sympy.log(2)),
}
"""By the class of torch's function (`torch.utils._sympy.functions`)."""
