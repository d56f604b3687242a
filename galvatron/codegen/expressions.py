"""Symbolic sizes and numbers as Python text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction

import sympy

from galvatron.errors import GalvatronError
from galvatron.ir.layout import Shard
from galvatron.ir.types import Dim, Length

_SUM, _PRODUCT, _ATOM = 1, 2, 3


class _Number(sympy.Symbol):
    """A number of the batch, under its Python name."""


def print_expression(
    dim: Dim | float, *, atomic: bool = False, numbers: Mapping[sympy.Symbol, str] | None = None
) -> str:
    """A number or an expression in `b` and `B` as Python: `16 * b` reads `b * 16`, halves divide with `//`.

    A rational factor is an exact division of a size, hence `//`; a symbol in a denominator is a number, hence `/`.
    `atomic` puts parentheses around whatever an operator beside it could tear apart; `numbers` has the Python names of
    the batch's numbers and lengths.
    """
    if isinstance(dim, sympy.Expr):
        named = {
            symbol: (sympy.Symbol if isinstance(symbol, Length) else _Number)(name, **symbol.assumptions0)
            for symbol, name in (numbers or {}).items()
        }
        text, strength = _print(dim.xreplace(named))
    else:
        text, strength = _number(dim), _ATOM
    return f"({text})" if atomic and strength < _ATOM else text


def print_shard(shard: Shard, outer: Dim, *, numbers: Mapping[sympy.Symbol, str] | None = None) -> str:
    """`rt.Sharded(1, outer=b)`; `numbers` as for `print_expression`."""
    counted = "" if outer == 1 else f", outer={print_expression(outer, numbers=numbers)}"
    return f"rt.Sharded({shard.dim}{counted}{', padded=True' * shard.padded}{', folded=True' * shard.folded})"


def share(size: Dim, symbol: sympy.Symbol) -> Fraction | None:
    """The positive rational `c` for which `size = c · symbol`, else None."""
    factor = sympy.cancel(size / symbol) if isinstance(size, sympy.Expr) else None
    if factor is None or not factor.is_Rational or factor <= 0:
        return None
    return Fraction(int(factor.p), int(factor.q))


def _number(value: int | float) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return "torch.nan" if math.isnan(value) else ("torch.inf" if value > 0 else "-torch.inf")
    return repr(value)


def _print(expr: sympy.Basic) -> tuple[str, int]:
    """Python text and how strongly it binds."""
    if isinstance(expr, (sympy.Integer, sympy.Float)):
        text = _number(int(expr) if isinstance(expr, sympy.Integer) else float(expr))
        return text, _SUM if text.startswith("-") else _ATOM
    if isinstance(expr, sympy.Symbol):
        return str(expr), _ATOM
    if isinstance(expr, sympy.Pow) and isinstance(expr.exp, sympy.Rational) and not expr.exp.is_Integer:
        return f"{_atom(expr.base)}**{_atom(sympy.Float(expr.exp))}", _PRODUCT
    if isinstance(expr, sympy.log):
        return f"math.log({_print(expr.args[0])[0]})", _ATOM
    numerator, denominator = sympy.fraction(sympy.together(expr))
    if denominator != 1:
        operator = "/" if denominator.free_symbols or numerator.has(_Number) else "//"
        return f"{_tight(numerator)} {operator} {_atom(denominator)}", _PRODUCT
    if isinstance(expr, sympy.Add):
        return _print_sum(expr), _SUM
    if isinstance(expr, sympy.Mul):
        constant, rest = expr.as_coeff_Mul()
        if constant == -1:
            return f"-{_atom(rest)}", _SUM
        factors = [_atom(f) for f in rest.as_ordered_factors()]
        return " * ".join([*factors, *([_atom(constant)] if constant != 1 else [])]), _PRODUCT
    if isinstance(expr, sympy.Pow):
        base, exponent = _atom(expr.base), _atom(expr.exp)
        return f"{base} ** {exponent}" if "(" in base + exponent else f"{base}**{exponent}", _PRODUCT
    if isinstance(expr, sympy.floor) and not _counts(expr.args[0]):
        return f"math.floor({_print(expr.args[0])[0]})", _ATOM
    if isinstance(expr, sympy.Abs):
        return f"abs({_print(expr.args[0])[0]})", _ATOM
    if isinstance(expr, sympy.floor):
        numerator, denominator = sympy.fraction(sympy.together(expr.args[0]))
        return f"{_tight(numerator)} // {_atom(denominator)}", _PRODUCT
    if isinstance(expr, sympy.ceiling):
        numerator, denominator = sympy.fraction(sympy.together(expr.args[0]))
        return f"-(-{_atom(numerator)} // {_atom(denominator)})", _SUM
    if isinstance(expr, sympy.Mod):
        return f"{_atom(expr.args[0])} % {_atom(expr.args[1])}", _PRODUCT
    if isinstance(expr, (sympy.Max, sympy.Min)):
        name = "max" if isinstance(expr, sympy.Max) else "min"
        return f"{name}({', '.join(sorted(_print(a)[0] for a in expr.args))})", _ATOM
    raise GalvatronError(f"no Python text for the expression {expr}")


def _counts(expr: sympy.Basic) -> bool:
    """Whether an expression is made of whole numbers alone."""
    return not expr.has(sympy.Float) and all(number.is_integer for number in expr.atoms(_Number))


def _print_sum(expr: sympy.Add) -> str:
    constant, rest = expr.as_coeff_Add()
    terms = [*(rest.as_ordered_terms() if rest != 0 else ()), *([constant] if constant != 0 else [])]
    terms.sort(key=lambda t: bool(t.could_extract_minus_sign()))
    text = _tight(terms[0])
    for term in terms[1:]:
        negative = term.could_extract_minus_sign()
        text += f" - {_tight(-term)}" if negative else f" + {_tight(term)}"
    return text


def _atom(expr: sympy.Basic) -> str:
    text, strength = _print(expr)
    return text if strength == _ATOM else f"({text})"


def _tight(expr: sympy.Basic) -> str:
    """Fit to stand on the left of a product or inside a sum."""
    text, strength = _print(expr)
    return text if strength >= _PRODUCT else f"({text})"
