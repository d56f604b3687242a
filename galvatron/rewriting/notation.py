"""Patterns as text: formulas over op names, such as `x * sigmoid(x)`.

    linear(x, w) + b
    softmax.int(q @ k, 3) @ v
    _to_copy(_to_copy(x, dtype=wide), dtype=narrow)

A name stands for any argument (a tensor, a number, a list), the same one wherever it appears; `_` for anything, each
time. Ops are written as in a program less the `aten.`, those without an overload mean `.default`; `+ - * / @ ** ~` are
`add.Tensor` and so on. An argument that is not written has its default, or any value after `...`, as in `clone(x,
...)`. A number in a pattern stands for itself up to rounding, a whole one exactly. The syntax is Python's; the text is
parsed, never evaluated.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import cache

from galvatron.errors import GalvatronError
from galvatron.ir.graph import Arg
from galvatron.ir.ops.schemas import is_operator, schema_of
from galvatron.ir.ops.table import of_target
from galvatron.ir.ops.targets import of_aten

ANYTHING = "_"

_OPERATORS: dict[type[ast.AST], str] = {
    ast.Add: "add.Tensor",
    ast.Sub: "sub.Tensor",
    ast.Mult: "mul.Tensor",
    ast.Div: "div.Tensor",
    ast.MatMult: "matmul",
    ast.Pow: "pow.Tensor_Scalar",
    ast.Invert: "bitwise_not",
}


@dataclass(frozen=True)
class Name:
    """Any argument; all uses of one name are equal."""

    name: str


@dataclass(frozen=True)
class Number:
    """A number, up to the rounding of how the model wrote it; or True, False, None, `inf`."""

    value: Arg


@dataclass(frozen=True)
class Listed:
    """A list argument, item by item."""

    items: tuple[Term, ...]


@dataclass(frozen=True)
class OpPattern:
    """An op with the arguments that differ from their defaults, by parameter name; if `open`, others may as well."""

    target: str
    arguments: tuple[tuple[str, Term], ...]
    open: bool = False

    @property
    def commutative(self) -> bool:
        return of_target(self.target).commutes


Term = Name | Number | Listed | OpPattern


@cache
def parse(text: str) -> Term:
    """Reads a pattern.

    Raises:
        GalvatronError: it is no formula, or has an op or argument that torch does not know.
    """
    try:
        return _term(ast.parse(text, mode="eval").body)
    except SyntaxError as error:
        raise GalvatronError(f"pattern {text!r}: {error}") from error


def _term(node: ast.expr) -> Term:
    match node:
        case ast.Name(id="inf"):
            return Number(float("inf"))
        case ast.Name(id=name):
            return Name(name)
        case ast.Constant(value=value) if not isinstance(value, (bytes, complex)) and value is not ...:
            return Number(value)
        case ast.UnaryOp(op=ast.USub(), operand=operand) if isinstance(number := _term(operand), Number):
            assert isinstance(number.value, (int, float))
            return Number(-number.value)
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _OPERATORS:
            return _call(_OPERATORS[type(op)], [operand], [])
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _call(_OPERATORS[type(op)], [left, right], [])
        case ast.List(elts=items):
            return Listed(tuple(_term(item) for item in items))
        case ast.Call(func=function, args=args, keywords=keywords):
            return _call(ast.unparse(function), args, keywords)
    raise GalvatronError(f"a pattern cannot say {ast.unparse(node)!r}")


def _call(op: str, args: list[ast.expr], keywords: list[ast.keyword]) -> OpPattern:
    target = of_aten(op)
    if not is_operator(target):
        raise GalvatronError(f"a pattern names {target!r}, which torch does not have")
    is_open = bool(args) and isinstance(args[-1], ast.Constant) and args[-1].value is ...
    args = args[:-1] if is_open else args
    parameters = schema_of(target).parameters
    names = [p.name for p in parameters]
    given = dict(zip((p.name for p in parameters if not p.keyword_only), args, strict=False))
    given |= {str(k.arg): k.value for k in keywords}
    if len(given) != len(args) + len(keywords) or not given.keys() <= set(names):
        raise GalvatronError(f"a pattern calls {target!r} with arguments that it does not take")
    return OpPattern(target, tuple((name, _term(given[name])) for name in names if name in given), is_open)
