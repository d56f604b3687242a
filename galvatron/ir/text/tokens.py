"""What the text form is made of: its version, and the patterns of its words.

Patterns repeat classes of characters, and groups only between them, since each round of a group takes memory.
"""

from __future__ import annotations

VERSION = 2
"""Of the text form; the first line of a file says it."""

BLANKS = r"[ \t\r\n]*"

STRING = r'"[^"\\\n]*(?:\\.[^"\\\n]*)*"'
"""A JSON string on one line."""

_COUNTER = r"\{[0-9i+-]+\}"
"""`{i}`, `{i-1}`, `{2i+1}`: a number that counts with the loop around it."""

_LETTERS = r"[\w.@$+-]*"

LABEL = rf"[A-Za-z_]{_LETTERS}(?:{_COUNTER}{_LETTERS})*"
"""A bare name of a layer, a piece of state, a file …"""

SIGILED = rf"(?:{STRING}|(?:[\w.@$+-]|{_COUNTER}){_LETTERS}(?:{_COUNTER}{_LETTERS})*)"
"""What follows the sigil of a `%value` or `@class`."""

NAME = r"[A-Za-z_][\w.]*"
"""A word in expressions and records, an op, an element type, a mesh axis."""

INT = r"[0-9]+"
NUMBER = r"[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?"
AXIS = rf"(?:{STRING}|{NAME})={INT}@{INT}"
STRATEGY = r"(?:\(\)|[a-z]+[0-9]*)(?:[-+=][a-z0-9]+)*"
