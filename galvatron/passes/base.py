"""The pass as a value: a frozen dataclass whose fields are its options.

    @dataclass(frozen=True)
    class Search(Pass):
        '''Chooses the plan.'''

        name = "search"
        needs, leaves = Form.CANDIDATES, Form.PLANNED

        memory: Bytes | None = None
        schedule: str | None = None

        def run(self, program: Program) -> Program: ...

`search{memory=36GiB,schedule=1f1b}` parses into `Search(memory=36 * 2**30, schedule="1f1b")` and prints back from it.
An option is an `int`, `float`, `str`, `bool`, `Bytes` or `Literal`, one of these or None, or a tuple of one of these;
every option has a default. Underscores of a field's name are dashes in text.

A pass that has something to tell beside the program defines `result` instead of `run`, and gives a `PassResult`: how
often it did what, and remarks about places. One that only looks gives the program that it got, with `leaves` None; a
range of forms is written

    needs, leaves = (Form.CLUSTERED, Form.PLANNED), None

A program is valid before a pass and after it, perhaps not during. Printing, timing, verifying, counting, bisecting and
reproducers stand around passes (`galvatron.passes.instrument`), never inside them.
"""

from __future__ import annotations

import dataclasses
import json
import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Literal, NewType, TypeVar

from galvatron.errors import GalvatronError, PassError, did_you_mean
from galvatron.ir.graph import Op
from galvatron.ir.program import Form, Program
from galvatron.units import parse_bytes, print_bytes

Bytes = NewType("Bytes", int)
"""The type of an option that is a size in bytes: `36GiB` in text, an int in Python."""

P = TypeVar("P", bound="Pass")

_BARE = re.compile(r"[A-Za-z0-9_.:/+*@%~-][A-Za-z0-9_.:/+*@%~=-]*")
"""Option text that needs no quotes; `=` may stand inside, as in `recompute=selective`."""


@dataclass(frozen=True)
class Remark:
    """What a pass says of one place in a program.

    Attributes:
        op: where; None for the program as a whole.
        within: the layer class that the op is in; empty for the flat graph of a captured program.
        rule: of the rewrite that this is about; empty if it is about none.
    """

    text: str
    op: Op | None = None
    within: str = ""
    rule: str = ""

    def __str__(self) -> str:
        """One line: `block_0: linear at model.py:31 (self.down(x)): is left whole`."""
        source = None if self.op is None else self.op.source
        op = "" if self.op is None else self.op.target
        line = "" if source is None else f" at {source}" + (f" ({source.code})" if source.code else "")
        return ": ".join(part for part in (self.within, f"{op}{line}", self.text) if part)


@dataclass(frozen=True)
class PassResult:
    """What a pass gives: the program, how often it did what (by words of its own), and remarks."""

    program: Program
    counts: Mapping[str, int] = dataclasses.field(default_factory=dict)
    remarks: tuple[Remark, ...] = ()


@dataclass(frozen=True)
class Pass:
    """One transformation of a program: pure, deterministic, configured by its fields.

    `needs` is the form of the program it takes, or the first and the last of several; `leaves` is the form of the one
    it gives, None for that which it got.
    """

    name: ClassVar[str]
    needs: ClassVar[Form | tuple[Form, Form]]
    leaves: ClassVar[Form | None]

    def __init_subclass__(cls) -> None:
        if cls.run is Pass.run and cls.result is Pass.result:
            raise TypeError(f"{cls.__name__} is no pass: it defines neither `run` nor `result`")

    def __post_init__(self) -> None:
        """Checks the options, wherever they come from.

        Raises:
            PassError: a value that is not of its option's type.
        """
        for field in dataclasses.fields(self):
            try:
                _check_option(getattr(self, field.name), _option_type(type(self), field.name))
            except ValueError as error:
                raise PassError(f"pass {self.name!r}, option {option_name(field)!r}: {error}") from None

    @classmethod
    def takes(cls, form: Form) -> bool:
        """Whether a program may be in this form."""
        first, last = cls.needs if isinstance(cls.needs, tuple) else (cls.needs, cls.needs)
        return first <= form <= last

    @classmethod
    def needed(cls) -> str:
        """The forms that it takes: `captured`, or `clustered to planned`."""
        return " to ".join(map(str, cls.needs)) if isinstance(cls.needs, tuple) else str(cls.needs)

    def run(self, program: Program) -> Program:
        """The transformed program.

        Raises:
            GalvatronError: the program or the options ask for something impossible.
        """
        return self.result(program).program

    def result(self, program: Program) -> PassResult:
        """The same, with what there is to tell."""
        return PassResult(self.run(program))

    def __str__(self) -> str:
        """The pipeline text of this pass: its name, and the options that differ from their defaults."""
        options = [
            f"{option_name(field)}={_print_option(getattr(self, field.name), _option_type(type(self), field.name))}"
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default
        ]
        return f"{self.name}{{{','.join(options)}}}" if options else self.name

    @classmethod
    def with_options(cls: type[P], options: Mapping[str, str]) -> P:
        """An instance from option texts by name.

        Raises:
            PassError: an option the pass does not have, or a text that is not a value of its type.
        """
        fields = {option_name(field): field.name for field in dataclasses.fields(cls)}
        values: dict[str, Any] = {}
        for name, text in options.items():
            key = name.replace("_", "-")
            if key not in fields:
                hint = did_you_mean(key, fields) if fields else "it has none"
                raise PassError(f"pass {cls.name!r} has no option {name!r}; {hint}")
            try:
                values[fields[key]] = _parse_option(text, _option_type(cls, fields[key]))
            except (ValueError, GalvatronError) as error:
                raise PassError(f"pass {cls.name!r}, option {key!r}: {error}") from error
        return cls(**values)


def option_name(field: dataclasses.Field[Any]) -> str:
    """The name of an option in pipeline text."""
    return field.name.replace("_", "-")


@dataclass(frozen=True)
class Option:
    """An option of a pass as it is written: its name, what it may be, and its default."""

    name: str
    kind: str
    default: str


def options_of(cls: type[Pass]) -> tuple[Option, ...]:
    """The options of a pass."""
    kinds = {field.name: _option_type(cls, field.name) for field in dataclasses.fields(cls)}
    return tuple(
        Option(option_name(field), _kind_text(kinds[field.name]), _print_option(field.default, kinds[field.name]))
        for field in dataclasses.fields(cls)
    )


def _kind_text(kind: Any) -> str:
    """`bytes`, `[str,...]`, `1f1b|zbv`, `int|none`."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return "|".join(map(str, arguments))
    if origin is tuple:
        return f"[{_kind_text(arguments[0])},...]"
    if origin in (typing.Union, types.UnionType):
        return f"{_kind_text(_not_none(kind))}|none"
    return "bytes" if kind is Bytes else kind.__name__


@cache
def _option_type(cls: type[Pass], field: str) -> Any:
    return typing.get_type_hints(cls)[field]


def _parse_option(text: str, kind: Any) -> Any:
    if kind in _SCALARS:
        return _SCALARS[kind](text)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return _parse_str(text)
    if origin is tuple:
        if not (text.startswith("[") and text.endswith("]")):
            raise ValueError(f"{text!r} is not a list; write it like [a,b]")
        return tuple(_parse_option(item, arguments[0]) for item in split_outside_quotes(text[1:-1]))
    if origin in (typing.Union, types.UnionType):
        return None if text == "none" else _parse_option(text, _not_none(kind))
    raise TypeError(f"an option cannot be of type {kind}")


def _check_option(value: Any, kind: Any) -> None:
    """
    Raises:
        ValueError: the value is not of the kind.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        if value not in arguments:
            raise ValueError(f"{value!r} is not a choice; {did_you_mean(str(value), arguments)}")
    elif origin is tuple:
        if not isinstance(value, tuple):
            raise ValueError(f"must be a tuple, not {value!r}")
        for item in value:
            _check_option(item, arguments[0])
    elif origin in (typing.Union, types.UnionType):
        if value is not None:
            _check_option(value, _not_none(kind))
    elif type(value) not in _TYPES[kind]:
        raise ValueError(f"must be of type {_TYPES[kind][0].__name__}, not {value!r}")


def _print_option(value: Any, kind: Any) -> str:
    if value is None:
        return "none"
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        return _print_option(value, _not_none(kind))
    if origin is tuple:
        return f"[{','.join(_print_option(item, typing.get_args(kind)[0]) for item in value)}]"
    if kind is Bytes:
        return print_bytes(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return value if _BARE.fullmatch(value) and value != "none" else json.dumps(value, ensure_ascii=False)
    return repr(value)


def _not_none(kind: Any) -> Any:
    (inner,) = (a for a in typing.get_args(kind) if a is not type(None))
    return inner


def _parse_str(text: str) -> str:
    return json.loads(text) if text.startswith('"') else text


def _parse_bool(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError(f"{text!r} is not true or false")
    return text == "true"


_SCALARS: dict[Any, Callable[[str], Any]] = {
    str: _parse_str,
    bool: _parse_bool,
    int: int,
    float: float,
    Bytes: parse_bytes,
}

_TYPES: dict[Any, tuple[type, ...]] = {str: (str,), bool: (bool,), int: (int,), float: (float, int), Bytes: (int,)}


def split_outside_quotes(text: str) -> list[str]:
    """The comma-separated items of a text; commas inside `"…"`, `[…]` and `{…}` do not separate. Empty text, no items.

    Raises:
        PassError: a quote or bracket that is not closed, or an empty item.
    """
    items, start, depth, position = [], 0, 0, 0
    while position < len(text):
        character = text[position]
        if character == '"':
            match = _QUOTED.match(text, position)
            if match is None:
                raise PassError(f"column {position + 1}: the quote is not closed in {text!r}")
            position = match.end()
            continue
        depth += (character in "[{") - (character in "]}")
        if depth < 0:
            raise PassError(f"column {position + 1}: unexpected {character!r} in {text!r}")
        if character == "," and depth == 0:
            items.append(text[start:position].strip())
            start = position + 1
        position += 1
    if depth:
        raise PassError(f"a bracket is not closed in {text!r}")
    if text.strip():
        items.append(text[start:].strip())
    if "" in items:
        raise PassError(f"there is nothing between two commas in {text!r}")
    return items


_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
