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

A program is valid before a pass and after it, perhaps not during. Printing, timing, verifying, bisecting and
reproducers stand around passes (`galvatron.passes.instrument`), never inside them.
"""

from __future__ import annotations

import dataclasses
import json
import re
import types
import typing
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Literal, NewType, TypeVar

from galvatron.errors import GalvatronError, PassError, did_you_mean
from galvatron.ir.program import Form, Program
from galvatron.units import parse_bytes, print_bytes

Bytes = NewType("Bytes", int)
"""The type of an option that is a size in bytes: `36GiB` in text, an int in Python."""

P = TypeVar("P", bound="Pass")

_BARE = re.compile(r"[A-Za-z0-9_.:/+*@%~-][A-Za-z0-9_.:/+*@%~=-]*")
"""Option text that needs no quotes; `=` may stand inside, as in `recompute=selective`."""


@dataclass(frozen=True)
class Pass(ABC):
    """One transformation of a program: pure, deterministic, configured by its fields.

    `needs` is the form of the program it takes, `leaves` the form of the one it gives.
    """

    name: ClassVar[str]
    needs: ClassVar[Form]
    leaves: ClassVar[Form]

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

    @abstractmethod
    def run(self, program: Program) -> Program:
        """The transformed program.

        Raises:
            GalvatronError: the program or the options ask for something impossible.
        """

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
