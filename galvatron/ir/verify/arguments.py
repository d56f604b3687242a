"""Whether the arguments of an op are those that its operator takes."""

from __future__ import annotations

from collections.abc import Mapping

import sympy

from galvatron.errors import did_you_mean
from galvatron.ir import limits
from galvatron.ir.graph import Arg, Const, Op, Ref
from galvatron.ir.ops.schemas import CONSTANTS, Parameter, Required, Schema, schema_of
from galvatron.ir.ops.table import operator_of


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
        if parameter.name not in given and isinstance(parameter.default, Required):
            return f"the argument {parameter.name!r} is missing"
        if parameter.name in given and not _takes(op, parameter, given[parameter.name]):
            return f"{_told(given[parameter.name])} for {parameter.name!r}, which is {_type_text(parameter)}"
    if problem := _length_problem(schema, operator_of(op).rounds, given):
        return problem
    if schema.results is not None and len(op.results) != schema.results:
        return f"it gives {schema.results} results, not {len(op.results)}"
    return "" if op.results else "it gives a result"


def _length_problem(schema: Schema, rounds: str, given: Mapping[str, Arg]) -> str:
    """Of which of these arguments an op has too much to be run; empty if of none."""
    for parameter in schema.parameters:
        value = given.get(parameter.name)
        count = len(value) if isinstance(value, tuple) else value
        if parameter.name == rounds and isinstance(count, int) and count > limits.ROUNDS:
            return f"{parameter.name!r} asks for {count} rounds; there may be {limits.ROUNDS}"
        whole = parameter.kind in ("int", "SymInt") and schema.results is not None
        if isinstance(value, tuple) and whole and len(value) > limits.INTEGERS:
            return f"{parameter.name!r} has {len(value)} numbers; there may be {limits.INTEGERS}"
    return ""


def _takes(op: Op, parameter: Parameter, value: Arg) -> bool:
    if parameter.kind == "Tensor" and parameter.length is None and operator_of(op).numbers and _is_number(value):
        return True
    return _fits(value, parameter)


def _fits(value: Arg, parameter: Parameter) -> bool:
    """Whether a value is of the type of a parameter."""
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
    "Tensor": lambda value: isinstance(value, Ref),
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
