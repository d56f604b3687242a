"""Records as text, `name = value` for each field, read and printed from their declaration."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from galvatron.errors import did_you_mean
from galvatron.ir.records import Field, fields_of
from galvatron.ir.text.arguments import format_argument, read_argument
from galvatron.ir.text.names import bare_or_quoted
from galvatron.ir.text.scanner import KEY, Scanner
from galvatron.units import format_bytes, format_flop, format_seconds

Record = TypeVar("Record")

_TITLE = "name"
"""The field that stands before the brace."""


def read_record(s: Scanner, cls: type[Record], apart: Mapping[str, Callable[[Scanner], Any]] | None = None) -> Record:
    """`keyword name { field = value … keyword { … } }`: fields first, then the records in it, then what is read apart.
    A tuple of records is written one by one.

    Args:
        apart: how fields are read that are of no kind.
    """
    at, word = s.at, s.keyword()
    s.expect(word)
    fields = fields_of(cls)
    values: dict[str, Any] = {}
    if fields[0].name == _TITLE:
        values[_TITLE] = s.name()
    s.expect("{")
    _read_entries(s, fields, values)
    inner = {field.word: (field, field.cls) for field in fields if field.cls is not None}
    while (keyword := s.keyword()) in inner:
        field, inner_cls = inner[keyword]
        if field.many:
            values.setdefault(field.name, []).append(read_record(s, inner_cls))
            continue
        if keyword in values:
            s.refuse(f"a second {keyword}", s.at)
        values[keyword] = read_record(s, inner_cls)
    for name, read in (apart or {}).items():
        values[name] = read(s)
    if not s.accept("}"):
        s.unexpected("a field", *map(repr, inner), "'}'")
    return _made(s, cls, values, word, at)


def read_list(s: Scanner, cls: type[Record]) -> Record:
    """`keyword field = value, field = value`."""
    at, word = s.at, s.keyword()
    s.expect(word)
    values: dict[str, Any] = {}
    _read_entries(s, fields_of(cls), values, commas=True)
    return _made(s, cls, values, word, at)


def _made(s: Scanner, cls: type[Record], values: dict[str, Any], word: str, at: int) -> Record:
    if missing := [field.name for field in fields_of(cls) if field.required and field.name not in values]:
        s.refuse(f"{word} needs {', '.join(missing)}", at)
    for field in fields_of(cls):
        if field.name in values and (field.many or _has_entries(field)):
            value = values[field.name]
            values[field.name] = tuple(value if field.many else value.items())
    return cls(**values)


def _has_entries(field: Field) -> bool:
    return field.kind is not None and bool(field.kind.entry)


def _read_entries(s: Scanner, fields: tuple[Field, ...], values: dict[str, Any], *, commas: bool = False) -> None:
    """Adds the values of fields, each given once and of its kind; of a table, those of its entries by name."""
    known = {field.name: field for field in fields if field.kind is not None and field.name != _TITLE}
    at = s.at
    while (key := s.take(KEY)) is not None:
        s.expect("=")
        value = read_argument(s)
        name, dot, entry = key.partition(".")
        field = known.get(name)
        if field is None or field.kind is None or _has_entries(field) != bool(dot):
            words = [*known, *(field.word for field in fields if field.cls is not None)]
            s.refuse(f"unknown field {key!r}; {did_you_mean(key, words)}", at)
        into, within = (values.setdefault(name, {}), entry) if dot else (values, name)
        if within in into:
            s.refuse(f"{key!r} is given twice", at)
        if not field.kind.admits(((entry, value),) if dot else value):
            s.refuse(f"{key!r} must be {field.kind.entry or field.kind.meaning}", at)
        into[within] = value
        if commas and not s.more():
            return
        at = s.at


def record_lines(word: str, record: Any, note: Callable[[str], str]) -> Iterator[str]:
    """A record as `read_record` reads it, without fields that are none by default and are; `note` makes a comment of a
    figure for a reader."""
    title = [bare_or_quoted(getattr(record, _TITLE))] if hasattr(record, _TITLE) else []
    yield " ".join([word, *title, "{"])
    unsaid = {
        f.name for f in fields_of(type(record)) if not f.required and f.default is getattr(record, f.name) is None
    }
    for key, text, figure in entries(record):
        if key not in unsaid:
            yield f"  {key} = {text}{note(figure) if figure else ''}"
    yield from (f"  {line}" for line in within(record, note))
    yield "}"


def within(record: Any, note: Callable[[str], str]) -> Iterator[str]:
    """The records in a record, without those that are none by default and are."""
    for field in fields_of(type(record)):
        if field.cls is not None and (value := getattr(record, field.name)) != field.default:
            for item in value if field.many else (value,):
                yield from record_lines(field.word, item, note)


def entries(record: Any, *, lenient: bool = False) -> Iterator[tuple[str, str, str]]:
    """Name, value and figure for a reader (empty if that says nothing more) of every field with a kind."""
    for field in fields_of(type(record)):
        value = getattr(record, field.name)
        if field.quiet and value == field.default:
            continue
        if _has_entries(field):
            for name, entry in value:
                yield f"{field.name}.{name}", format_argument(entry, lenient=lenient), figure(field.name, entry)
        elif field.kind is not None and field.name != _TITLE:
            yield field.name, format_argument(value, lenient=lenient), figure(field.name, value)


def figure(name: str, value: Any) -> str:
    """A quantity for a reader, with the unit that its name ends in; empty where that is none."""
    if isinstance(value, tuple):
        return ", ".join(filter(None, (figure(name, item) for item in value)))
    if type(value) not in (int, float):
        return ""
    quantity, per, _ = name.partition("_per_s")
    rate = "/s" if per else ""
    for unit, shown in (("bytes", format_bytes), ("flop", format_flop)):
        if quantity.endswith(unit):
            return shown(value) + rate
    return format_seconds(value) if name.endswith("_s") else ""
