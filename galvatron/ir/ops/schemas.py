"""The operators of `aten` that a program may contain: a table of pure functions of tensors, with their signatures.

`operators.txt` has a line for each, in torch's own notation: `add.Tensor(Tensor self, Tensor other, *, Scalar alpha=1)
-> Tensor  # pointwise`. It is made from the schemas of torch (`tests/ir/ops/operators.py` has the criteria): nothing in
it writes to its arguments, to files or to anything else, so whatever a program from a file says may be computed. An
operator that is not in it is in no program.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import sympy

from galvatron.errors import did_you_mean
from galvatron.ir.graph import Arg, Const, Op, Ref

CONSTANTS = frozenset(
    Const("memory_format", name)
    for name in ("contiguous_format", "preserve_format", "channels_last", "channels_last_3d")
) | {Const("layout", "strided")}
"""Constants of torch that an op may be given beside element types."""


class _Required:
    """The default of a parameter that has none."""


REQUIRED = _Required()


@dataclass(frozen=True)
class Parameter:
    """A parameter of an operator.

    `kind` is what torch calls its type, without what the other fields say of it: `Tensor`, `int`, `Scalar`. `length` is
    None for a single value; for a list, how often a single value may stand in it, 0 if none may.
    """

    name: str
    kind: str
    length: int | None = None
    optional: bool = False
    optional_items: bool = False
    keyword_only: bool = False
    default: Arg | _Required = REQUIRED


@dataclass(frozen=True)
class Schema:
    """The signature of an operator; `results` is the number of tensors it returns, None for a list of any length.

    `pointwise`: each element of the result follows from those at its place, after broadcasting. `random`: it draws
    random numbers, at least if its arguments say so.
    """

    parameters: tuple[Parameter, ...]
    results: int | None
    pointwise: bool = False
    random: bool = False

    def arguments(self, op: Op) -> dict[str, Arg]:
        """The arguments of an op that fits, by parameter, defaults included."""
        given = {p.name: a for p, a in zip(self.parameters, op.args, strict=False)} | dict(op.kwargs)
        defaults = {p.name: None if isinstance(p.default, _Required) else p.default for p in self.parameters}
        return defaults | given


def operators() -> Collection[str]:
    """Every operator of the table, as `<name>.<overload>`."""
    return _lines().keys()


@cache
def _lines() -> dict[str, str]:
    text = files("galvatron.ir.ops").joinpath("operators.txt").read_text(encoding="utf-8")
    return {line.partition("(")[0]: line for line in text.splitlines()}


def is_operator(target: str) -> bool:
    """Whether `aten.<name>.<overload>` may stand in a program."""
    return target.startswith("aten.") and target.removeprefix("aten.") in _lines()


@cache
def schema_of(target: str) -> Schema:
    """The signature of an operator of the table."""
    return parse_schema(_lines()[target.removeprefix("aten.")])


_COUNTING = frozenset({"arange", "range"})
"""Operators with numbers for arguments from which the size of the result follows."""


@cache
def takes_size(target: str, argument: int | str) -> bool:
    """Whether an argument, by its position or name, is a size, of which a rank has its part, and not a number, which
    means the same everywhere: sizes are integers, while numbers stand where a tensor could."""
    if not is_operator(target) or target.split(".")[1] in _COUNTING:
        return True
    parameters = enumerate(schema_of(target).parameters)
    return any(argument in (i, p.name) and p.kind in ("int", "SymInt") for i, p in parameters)


def argument_problem(op: Op) -> str:
    """What is wrong with the arguments and the number of results of an op of the table; empty if nothing is."""
    schema = schema_of(op.target)
    positional = [p for p in schema.parameters if not p.keyword_only]
    if len(op.args) > len(positional):
        return f"{len(op.args)} positional arguments, but it takes {len(positional)}"
    given: dict[str, Arg] = {p.name: a for p, a in zip(positional, op.args, strict=False)}
    known = {p.name for p in schema.parameters}
    for name, value in op.kwargs:
        if name not in known or name in given:
            wrong = "is given twice" if name in given else f"is no parameter; {did_you_mean(name, known)}"
            return f"{name!r} {wrong}"
        given[name] = value
    for parameter in schema.parameters:
        if parameter.name not in given and isinstance(parameter.default, _Required):
            return f"the argument {parameter.name!r} is missing"
        if parameter.name in given and not fits(given[parameter.name], parameter):
            return f"{_told(given[parameter.name])} for {parameter.name!r}, which is {_type_text(parameter)}"
    if schema.results is not None and len(op.results) != schema.results:
        return f"it gives {schema.results} results, not {len(op.results)}"
    return "" if op.results else "it gives a result"


def fits(value: Arg, parameter: Parameter) -> bool:
    """Whether a parameter takes an argument."""
    if value is None:
        return parameter.optional
    if parameter.length is None:
        return _FITS[parameter.kind](value)
    if not isinstance(value, tuple):
        return parameter.length > 0 and parameter.kind != "Tensor" and _FITS[parameter.kind](value)
    if parameter.length > 1 and len(value) not in (1, parameter.length):
        return False
    return all(parameter.optional_items if item is None else _FITS[parameter.kind](item) for item in value)


def _is_number(value: Arg) -> bool:
    return isinstance(value, (int, float, sympy.Expr))


def _is_size(value: Arg) -> bool:
    return type(value) is int or isinstance(value, sympy.Expr)


_FITS = {
    "Tensor": lambda value: isinstance(value, Ref) or _is_number(value),  # torch makes a tensor of a number
    "SymInt": _is_size,
    "int": lambda value: type(value) is int,
    "float": lambda value: _is_number(value) and not isinstance(value, bool),
    "bool": lambda value: isinstance(value, bool),
    "Scalar": _is_number,
    "str": lambda value: isinstance(value, str),
    "ScalarType": lambda value: isinstance(value, Const) and value.kind == "dtype",
    "MemoryFormat": lambda value: isinstance(value, Const) and value.kind == "memory_format" and value in CONSTANTS,
    "Layout": lambda value: isinstance(value, Const) and value.kind == "layout" and value in CONSTANTS,
    "Device": lambda value: False,  # where a program runs is none of its business
    "Generator": lambda value: False,
}


def _told(value: Arg) -> str:
    if isinstance(value, Ref):
        return f"%{value.name}"
    return value.name if isinstance(value, Const) else str(value)


def _type_text(parameter: Parameter) -> str:
    items = "?" * parameter.optional_items
    length = "" if parameter.length is None else f"[{parameter.length or ''}]"
    return f"{parameter.kind}{items}{length}{'?' * parameter.optional}"


_PARAMETER = re.compile(
    r"(?P<kind>\w+)(\([^)]*\))?(?P<items>\?(?=\[))?(?P<list>\[(?P<length>\d*)\])?(?P<optional>\?)? (?P<name>\w+)"
    r"(=(?P<default>.*))?"
)


def parse_schema(line: str) -> Schema:
    """Reads a line of the table.

    Raises:
        ValueError: it is none.
    """
    signature, _, traits = line.partition("  # ")
    parameters, _, returns = signature.partition("(")[2].rpartition(") -> ")
    found: list[Parameter] = []
    keyword_only = False
    for part in _split(parameters):
        if part == "*":
            keyword_only = True
        else:
            found.append(_parameter(part, keyword_only))
    results = None if returns.endswith("[]") else 1 + returns.count(", ")
    return Schema(tuple(found), results, "pointwise" in traits, "random" in traits)


def _split(text: str) -> Iterator[str]:
    """The parts between commas outside of brackets and quotes."""
    yield from re.findall(r'(?:[^,\["]|\[[^\]]*\]|"[^"]*")+', text.replace(", ", ","))


def _parameter(text: str, keyword_only: bool) -> Parameter:
    match = _PARAMETER.fullmatch(text)
    if match is None:
        raise ValueError(f"no parameter: {text!r}")
    length = int(match["length"] or 0) if match["list"] else None
    default = REQUIRED if match["default"] is None else _default(match["default"])
    return Parameter(
        match["name"], match["kind"], length, bool(match["optional"]), bool(match["items"]), keyword_only, default
    )


_DEFAULTS: dict[str, Arg] = {"None": None, "True": True, "False": False, "inf": float("inf")}


def _default(text: str) -> Arg:
    if text in _DEFAULTS:
        return _DEFAULTS[text]
    if text.startswith("["):
        return tuple(_default(item) for item in _split(text[1:-1]))
    number = re.fullmatch(r"-?\d+(\.\d*)?(e-?\d+)?", text)
    if number:
        return float(text) if "." in text or "e" in text else int(text)
    return text.strip('"')
