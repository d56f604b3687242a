"""The arguments of ops as text, read and printed: operands first, then what else an op is given, by its parameter.

`aten.layer_norm.default(%x, normalized_shape=[64], weight=%w, eps=1e-06)`: what lies between and is the default is left
out, so that the text says neither more nor less than the op. Read may be any argument by its position as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from galvatron.errors import did_you_mean
from galvatron.ir import random, spmd
from galvatron.ir.collectives import COLLECTIVES
from galvatron.ir.graph import Arg, Op
from galvatron.ir.ops.arguments import typed
from galvatron.ir.ops.schemas import Arguments, Parameter, Required, arranged, signature
from galvatron.ir.ops.targets import parsed
from galvatron.ir.text.arguments import format_argument, read_argument
from galvatron.ir.text.scanner import KEY, Scanner


def parameters_of(target: str) -> tuple[Parameter, ...]:
    """What an op may be given, those first that have a position; nothing is known of a function of the program."""
    if target in COLLECTIVES:
        return _of_collective(target)
    schema = signature(target)
    return () if schema is None else schema.parameters + _MORE.get(parsed(target).namespace, ())


def _keywords(names: Sequence[str]) -> tuple[Parameter, ...]:
    return tuple(Parameter(name, "", keyword_only=True) for name in names)


_MORE = {"random": _keywords(random.KEYWORDS), "spmd": _keywords(spmd.KEYWORDS)}
"""The keywords by which a sharded graph says more of an operator, by namespace."""


@cache
def _of_collective(target: str) -> tuple[Parameter, ...]:
    found = COLLECTIVES[target]
    return (Parameter("value", "Tensor"), *_keywords((*found.keywords, *found.optional, *found.flags)))


def format_call(op: Op, *, lenient: bool = False) -> str:
    """An op and its arguments, from which `read_call` makes equal ones."""
    parameters, args, kwargs = parameters_of(op.target), op.args, op.kwargs
    if kwargs:
        args, kwargs = arranged(parameters, args, dict(kwargs))
    shown: list[str] = []
    by_name = False
    for place, arg in enumerate(args):
        parameter = parameters[place] if place < len(parameters) and not parameters[place].keyword_only else None
        by_name = by_name or (parameter is not None and (parameter.kind != "Tensor" or arg is None))
        if parameter is None or not by_name:
            shown.append(format_argument(arg, lenient=lenient))
        elif place == len(args) - 1 or not _is_default(parameter, arg):
            shown.append(f"{parameter.name}={format_argument(arg, lenient=lenient)}")
    shown += [f"{name}={format_argument(arg, lenient=lenient)}" for name, arg in kwargs]
    return f"{op.target}({', '.join(shown)})"


def _is_default(parameter: Parameter, arg: Arg) -> bool:
    return not isinstance(parameter.default, Required) and typed(arg) == typed(parameter.default)


def read_call(s: Scanner, target: str) -> Arguments:
    """The arguments of an op, in parentheses."""
    parameters = parameters_of(target)
    positional: list[Arg] = []
    named: dict[str, Arg] = {}

    def read() -> None:
        at = s.at
        name = s.take(KEY)
        if name is not None:
            s.expect("=")
            _check_name(s, at, name, target, parameters)
            if name in named or any(p.name == name for p in parameters[: len(positional)]):
                s.refuse(f"the argument {name!r} is given twice", at)
            named[name] = read_argument(s)
        elif named:
            s.refuse("an argument by position after one by name", at)
        else:
            positional.append(read_argument(s))

    s.expect("(")
    s.listed(read, ")")
    return arranged(parameters, positional, named) if named else (tuple(positional), ())


def _check_name(s: Scanner, at: int, name: str, target: str, parameters: Sequence[Parameter]) -> None:
    if all(p.name != name for p in parameters):
        told = did_you_mean(name, [p.name for p in parameters]) if parameters else "it takes operands by position only"
        s.refuse(f"{target} has no argument {name!r}; {told}", at)
