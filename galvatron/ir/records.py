"""Records: dataclasses whose declaration says how each field is checked, and written in JSON and in text.

A field is of the kind that its type says, and may be left out if it has a default. What a value may be beyond its kind
is for those to say who know the record (`Cluster.check`, `galvatron.ir.plan_rules`).
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import sympy

from galvatron.errors import GalvatronError, did_you_mean
from galvatron.ir.curves import Points
from galvatron.ir.documents import is_text, shown
from galvatron.ir.types import Dim

Record = TypeVar("Record")


@dataclass(frozen=True)
class FieldKind:
    """What a field may hold, in words and as a predicate on values whose lists are tuples; and what it is converted by
    when it comes from JSON, where a number may have lost its point.

    `entry` says in words what each name has, of a list of names that have something: text writes it as one entry for
    each name, `field.name = …`.
    """

    meaning: str
    admits: Callable[[Any], bool]
    converted: Callable[[Any], Any] = lambda value: value
    entry: str = ""


@dataclass(frozen=True)
class Field:
    """A field of a record. `kind` is None in a record within the record (`cls`), in a tuple of such (`many`), and in
    what is read apart. A record within that is its `default` is not written, nor is a `quiet` field that is."""

    name: str
    kind: FieldKind | None
    cls: type | None
    required: bool
    default: Any = None
    many: bool = False
    quiet: bool = False

    @property
    def word(self) -> str:
        """What text calls a record of the field: one of several in the singular, `level` for `levels`."""
        return self.name.removesuffix("s") if self.many else self.name


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def _are_rows(value: Any) -> bool:
    return type(value) is tuple and all(type(row) is tuple and all(map(_is_number, row)) for row in value)


def _named(admits: Callable[[Any], bool], value: Any) -> bool:
    return type(value) is tuple and all(
        type(entry) is tuple and len(entry) == 2 and is_text(entry[0]) and admits(entry[1]) for entry in value
    )


def _are_points(value: Any) -> bool:
    return _are_rows(value) and all(len(row) == 2 for row in value)


def _floats(rows: Any) -> Rows:
    return tuple(tuple(map(float, row)) for row in rows)


Table = tuple[tuple[str, float], ...]
Rows = tuple[tuple[float, ...], ...]
Samples = tuple[tuple[str, Rows], ...]
"""Names, and what was measured of each: rows of numbers."""

_KINDS: dict[Any, FieldKind] = {
    int: FieldKind("a whole number", lambda v: type(v) is int),
    bool: FieldKind("true or false", lambda v: type(v) is bool),
    float: FieldKind("a number", _is_number, float),
    float | None: FieldKind(
        "a number or none", lambda v: v is None or _is_number(v), lambda v: None if v is None else float(v)
    ),
    str: FieldKind("text", is_text),
    tuple[int, ...] | None: FieldKind(
        "a list of whole numbers or none",
        lambda v: v is None or (type(v) is tuple and all(type(n) is int for n in v)),
    ),
    Dim: FieldKind("a size", lambda v: type(v) is int or isinstance(v, sympy.Expr)),
    Points: FieldKind("a list of pairs of numbers", _are_points, _floats),
    Table: FieldKind(
        "a list of names with numbers",
        partial(_named, _is_number),
        lambda v: tuple((name, float(n)) for name, n in v),
        "a number",
    ),
    Samples: FieldKind(
        "a list of names with rows of numbers",
        partial(_named, _are_rows),
        lambda v: tuple((name, _floats(rows)) for name, rows in v),
        "a list of rows of numbers",
    ),
}

APART = {"apart": True}
"""Metadata of a field that is of no kind, and is read and written by itself."""

QUIET = {"quiet": True}
"""Metadata of a field that is written only where it is not its default."""


@cache
def fields_of(cls: type) -> tuple[Field, ...]:
    """The fields of a record, in the order in which they are declared and written."""
    types = get_type_hints(cls)
    fields = []
    for field in dataclasses.fields(cls):
        type_ = types[field.name]
        kind = _KINDS.get(type_)
        many = get_origin(type_) is tuple and get_args(type_)[1:] == (...,) and kind is None
        item = get_args(type_)[0] if many else type_
        inner = item if isinstance(item, type) and dataclasses.is_dataclass(item) else None
        if kind is None and inner is None and field.metadata != APART:
            raise TypeError(f"{cls.__name__}.{field.name} is of a type that no kind of field has")
        required = field.default is dataclasses.MISSING
        default, many = None if required else field.default, many and inner is not None
        fields.append(Field(field.name, kind, inner, required, default, many, field.metadata == QUIET))
    return tuple(fields)


def read_members(
    cls: type[Record],
    members: Any,
    what: str,
    error: type[GalvatronError],
    apart: Mapping[str, Callable[[str, Any], Any]] | None = None,
) -> Record:
    """The record that a JSON object says.

    Args:
        what: what it is, for messages.
        error: the class of what is raised.
        apart: how fields are read that are of no kind, given their name and value.

    Raises:
        GalvatronError: a field is missing, unknown or of another kind; the message names it.
    """
    if not isinstance(members, dict):
        raise error(f"a {what} is a JSON object, not a {type(members).__name__}")
    fields = {field.name: field for field in fields_of(cls)}
    for name in members:
        if name not in fields:
            raise error(f"{what} field {shown(name)} is unknown; {did_you_mean(name, fields)}")
    values: dict[str, Any] = {}
    for name, field in fields.items():
        if name in members:
            values[name] = _read_member(field, members[name], what, error, apart or {})
        elif field.required:
            raise error(f"{what} field {name!r} is missing")
    return cls(**values)


def _read_member(field: Field, value: Any, what: str, error: type[GalvatronError], apart: Mapping[str, Any]) -> Any:
    if field.cls is not None and field.many:
        if not isinstance(value, list):
            raise error(f"{what} field {field.name!r} must be a list, not {shown(value)}")
        return tuple(read_members(field.cls, item, f"{what} {field.word}", error) for item in value)
    if field.cls is not None:
        return read_members(field.cls, value, f"{what} {field.name}", error)
    if field.kind is None:
        return apart[field.name](field.name, value)
    value = _with_tuples(value)
    if not field.kind.admits(value):
        raise error(f"{what} field {field.name!r} must be {field.kind.meaning}, not {shown(value)}")
    return field.kind.converted(value)


def _with_tuples(value: Any) -> Any:
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value
