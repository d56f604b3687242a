"""Lays out Python text the way `ruff format` does: one line if it fits, else broken inside the outermost brackets."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

WIDTH = 120
INDENT = "    "


@dataclass(frozen=True)
class Brackets:
    """`opening item, item closing`: a call with its arguments, or a tuple, list or dict.

    `lone_comma` writes the comma that a one-element tuple needs.
    """

    opening: str
    items: tuple[Text, ...]
    closing: str
    lone_comma: bool = False

    def __str__(self) -> str:
        comma = "," if self.lone_comma and len(self.items) == 1 else ""
        return f"{self.opening}{', '.join(str(i) for i in self.items)}{comma}{self.closing}"


Text = str | Brackets
"""Python text: without a place to break it, or with one."""


def call(function: str, arguments: Iterable[Text]) -> Brackets:
    """`function(argument, ...)`."""
    return Brackets(f"{function}(", tuple(arguments), ")")


def tuple_of(items: Iterable[Text]) -> Brackets:
    """A tuple display."""
    return Brackets("(", tuple(items), ")", lone_comma=True)


def list_of(items: Iterable[Text]) -> Brackets:
    """A list display."""
    return Brackets("[", tuple(items), "]")


def prefixed(prefix: str, text: Text, suffix: str = "") -> Text:
    """`text` with more in front and behind, on its first and last line: `name = text`, `key: text`, `text:`."""
    if isinstance(text, str):
        return f"{prefix}{text}{suffix}"
    return Brackets(prefix + text.opening, text.items, text.closing + suffix, text.lone_comma)


def lines(text: Text, depth: int = 0, trailing: str = "") -> list[str]:
    """The lines of one statement or item at an indentation depth, at most `WIDTH` columns each where possible."""
    flat = f"{INDENT * depth}{text}{trailing}"
    if isinstance(text, str) or len(flat) <= WIDTH or not text.items:
        return [flat]
    first, last = f"{INDENT * depth}{text.opening}", f"{INDENT * depth}{text.closing}{trailing}"
    joined = INDENT * (depth + 1) + ", ".join(str(i) for i in text.items)
    is_display = text.opening.endswith(("{", "[")) or text.lone_comma
    if len(joined) <= WIDTH and not is_display:
        return [first, joined, last]
    return [first, *(line for item in text.items for line in lines(item, depth + 1, ",")), last]
