"""The arguments of an op by the names of its parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from galvatron.ir.graph import Arg, Op, Ref
from galvatron.ir.ops.schemas import MEANINGLESS, REQUIRED, Parameter, schema_of

DIMS = frozenset({"dim", "dims", "dim0", "dim1", "dim2", "start_dim", "end_dim", "source", "destination"})
"""Parameters that name dims: they are always written."""


def with_arguments(op: Op, **changes: Arg) -> Op:
    """The op with some arguments changed, by parameter."""
    return written(op, op.arguments | changes)


def written(op: Op, arguments: Mapping[str, Arg]) -> Op:
    """The op with these arguments, one for each parameter, in the order of its schema, less the defaults."""
    parameters = schema_of(op.target).parameters
    positional = [p for p in parameters if not p.keyword_only]
    while positional and is_omitted(positional[-1], arguments[positional[-1].name]):
        positional.pop()
    keywords = (p for p in parameters if p.keyword_only and not is_omitted(p, arguments[p.name]))
    return replace(
        op,
        args=tuple(arguments[p.name] for p in positional),
        kwargs=tuple((p.name, arguments[p.name]) for p in keywords),
    )


def is_omitted(parameter: Parameter, value: Arg) -> bool:
    """Whether an argument need not be written, since it is the default or says nothing."""
    if parameter.name in MEANINGLESS and parameter.default is not REQUIRED:
        return True
    if parameter.name in DIMS and value is not None:
        return False
    return is_default(parameter, value)


def is_default(parameter: Parameter, value: Arg) -> bool:
    """Whether an argument says what the default of its parameter does; a number stands for a list of it."""
    default = parameter.default
    if default is REQUIRED or isinstance(value, Ref) or isinstance(value, bool) != isinstance(default, bool):
        return False
    return value == default or (parameter.length is not None and value == (default,) * parameter.length)
