"""Op arguments and sizes as text, read and printed: literals, values, lists, and arithmetic over the batch size."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from functools import lru_cache

import sympy
from sympy.printing.str import StrPrinter

from galvatron.errors import GalvatronError, ParseError, did_you_mean
from galvatron.ir import limits
from galvatron.ir.graph import Arg, Const, Ref
from galvatron.ir.text import expressions, tokens
from galvatron.ir.text.expressions import FUNCTIONS, SYMBOLS, ExpressionError
from galvatron.ir.text.names import quote, sigiled
from galvatron.ir.text.scanner import Scanner, token
from galvatron.ir.types import NUMBER_KINDS, BatchNumber, Length, lengths_in, numbers_in

_OPERAND = re.compile(
    rf"(?:(?P<number>{tokens.NUMBER})|(?P<value>%{tokens.SIGILED})|(?P<word>{tokens.NAME})|(?P<string>{tokens.STRING})"
    rf"|(?P<mark>[\[(-])){tokens.BLANKS}"
)
_OPERATOR = token(r"\*\*|[-+*/]")
_PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2, "**": 3}
_SIGNED = 3
"""What a sign before it applies to: a power, but no product."""

_WORDS: dict[str, Arg] = {"true": True, "false": False, "none": None, "inf": math.inf, "nan": math.nan, **SYMBOLS}
_IDENTIFIER = re.compile(r"[A-Za-z_]\w*")


def parse_expression(text: str, lengths: Iterable[Length] = ()) -> Arg:
    """Reads one op argument or size, such as `2*B + 1`.

    Args:
        lengths: what words may stand for besides.

    Raises:
        ParseError: malformed text.
    """
    scanner = Scanner(text)
    scanner.lengths.update((length.name, length) for length in lengths)
    arg = read_argument(scanner)
    scanner.end()
    return arg


def read_argument(s: Scanner, lists: int = 0, depth: int = 0, least: int = 1) -> Arg:
    """An argument, up to the first operator that binds less than `least` does.

    Args:
        lists: how many lists it is in.
        depth: how many brackets and signs it is in.
        least: a value of `_PRECEDENCE`; a sign or an exponent ends before a product.
    """
    left = _operand(s, lists, depth)
    while (match := _OPERATOR.match(s.text, s.at)) and _PRECEDENCE[match[1]] >= least:
        at, s.at = s.at, match.end()
        operator = match[1]
        power = operator == "**"
        right = read_argument(s, lists, depth + power, _SIGNED if power else _PRECEDENCE[operator] + 1)
        left = _combined(s, at, operator, left, right)
    return left


def _operand(s: Scanner, lists: int, depth: int) -> Arg:
    at = s.at
    match = _OPERAND.match(s.text, at)
    if match is None:
        s.unexpected("an argument")
    if depth > limits.NESTING:
        s.refuse(f"more than {limits.NESTING} brackets and signs, one in the other", at)
    s.at = match.end()
    kind = match.lastgroup or ""
    found = match[kind]
    match kind:
        case "number":
            return _number(s, found, at)
        case "word":
            if s.accept("("):
                args = s.listed(lambda: read_argument(s, lists, depth + 1), ")")
                return _computed(s, at, found, args, lambda: expressions.call(found, *args))
            return _word(s, found, at)
        case "string":
            return s.unquoted(found, at)
        case "value":
            s.at = at
            return Ref(s.value())
    if found == "[":
        return _list(s, at, lists + 1, depth + 1)
    if found == "(":
        inner = read_argument(s, lists, depth + 1)
        s.expect(")")
        return inner
    value = read_argument(s, lists, depth + 1, _SIGNED)
    if type(value) in (int, float):
        return -value  # type: ignore[operator]  # by its type
    return _computed(s, at, "-", (value,), lambda: expressions.negate(value))  # type: ignore[arg-type]  # checked there


def _list(s: Scanner, at: int, lists: int, depth: int) -> tuple[Arg, ...]:
    if lists > limits.LIST_DEPTH:
        s.refuse(f"a list nests deeper than {limits.LIST_DEPTH}", at)
    items = s.listed(lambda: read_argument(s, lists, depth), "]")
    if len(items) > limits.LIST_ITEMS:
        s.refuse(f"a list of more than {limits.LIST_ITEMS} items", at)
    return items


def _number(s: Scanner, found: str, at: int) -> Arg:
    if found.isdigit():
        return s.number(found, at)
    if len(found) > 2 * limits.DIGITS:
        s.refuse(f"a number of more than {2 * limits.DIGITS} characters", at)
    return float(found)


def _word(s: Scanner, found: str, at: int) -> Arg:
    if found in _WORDS:
        return _WORDS[found]
    if found in s.lengths:
        return s.lengths[found]
    kind, dot, name = found.partition(".")
    if dot and _IDENTIFIER.fullmatch(kind) and _IDENTIFIER.fullmatch(name):
        return BatchNumber(kind, name) if kind in NUMBER_KINDS else Const(kind, name)
    s.refuse(f"unknown word {found!r}; {did_you_mean(found, [*_WORDS, *s.lengths])}", at)


def _combined(s: Scanner, at: int, operator: str, left: Arg, right: Arg) -> Arg:
    return _computed(s, at, operator, (left, right), lambda: expressions.combine(operator, left, right))  # type: ignore[arg-type]  # checked there


def _computed(s: Scanner, at: int, operation: str, operands: tuple[Arg, ...], build: Callable[[], Arg]) -> Arg:
    try:
        s.budget.compute(operation, operands)
        return build()
    except (GalvatronError, ExpressionError, ArithmeticError, TypeError, ValueError) as error:
        s.refuse(str(error), at)


def format_argument(arg: Arg, *, lenient: bool = False) -> str:
    """An argument as text, from which `read_argument` makes an equal one.

    Args:
        lenient: print what has no text form in some way, instead of raising an error.

    Raises:
        GalvatronError: an expression or constant that has no text form.
    """
    match arg:
        case Ref(name):
            return sigiled("%", name)
        case Const(kind, name):
            if not lenient and not (_IDENTIFIER.fullmatch(kind) and _IDENTIFIER.fullmatch(name)):
                raise GalvatronError(f"the constant {kind!r} {name!r} has no text form: both parts must be identifiers")
            return f"{kind}.{name}"
        case None | True | False:
            return str(arg).lower()
        case str():
            return quote(arg)
        case float() if not math.isfinite(arg):
            return "nan" if math.isnan(arg) else "inf" if arg > 0 else "-inf"
        case float():
            short = f"{arg:.6g}"
            return short if "e" in short and float(short) == arg else repr(arg)
        case int():
            return repr(arg)
        case tuple():
            return f"[{', '.join(format_argument(a, lenient=lenient) for a in arg)}]"
    return format_size(arg, lenient=lenient)


def format_size(size: Arg, *, lenient: bool = False) -> str:
    """A size as text; see `format_argument`."""
    if not isinstance(size, sympy.Expr):
        return repr(size)
    try:
        return format_expression(size)
    except GalvatronError:
        if lenient:
            return str(size)
        raise


class _Printer(StrPrinter):
    def _print_Float(self, expr: sympy.Float) -> str:
        return repr(float(expr))


@lru_cache(maxsize=4096)
def format_expression(expression: sympy.Expr) -> str:
    """Text that parses into an equal expression.

    Raises:
        GalvatronError: a symbol other than `B`, `b`, `m`, lengths and numbers of the batch, or a function outside
            `FUNCTIONS`.
    """
    for form in (_Printer().doprint, _exact):
        try:
            text = form(expression)
            if _identical(parse_expression(text, lengths_in(expression)), expression):
                return text
        except (ParseError, ExpressionError):
            continue
    raise GalvatronError(
        f"the expression {expression} has no text form; "
        f"symbols are {', '.join(SYMBOLS)}, functions {', '.join(sorted(FUNCTIONS))}"
    )


def _identical(parsed: object, expression: sympy.Expr) -> bool:
    return isinstance(parsed, sympy.Expr) and type(parsed) is type(expression) and parsed == expression


def _exact(expression: sympy.Basic) -> str:
    if isinstance(expression, sympy.Integer):
        return f"Integer({expression})"
    if isinstance(expression, sympy.Float):
        return f"Float({float(expression)!r})"
    plain = (*SYMBOLS.values(), *lengths_in(expression), *numbers_in(expression))
    if isinstance(expression, sympy.Rational) or expression in plain:
        return str(expression)
    name = {sympy.Add: "Add", sympy.Mul: "Mul", sympy.Pow: "Pow"}.get(expression.func, expression.func.__name__)
    if name not in FUNCTIONS:
        raise ExpressionError(f"no text form for {name}")
    return f"{name}({', '.join(_exact(a) for a in expression.args)})"
