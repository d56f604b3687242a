"""JSON that may come from a stranger, read strictly and within bounds."""

from __future__ import annotations

import json
import re
import reprlib
from typing import Any

from galvatron.errors import ParseError
from galvatron.ir import limits

_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"?|[\[\]{}]|-?[0-9]+|-?Infinity|NaN', re.DOTALL)


class _Short(reprlib.Repr):
    def repr_int(self, x: int, level: int) -> str:
        # Python refuses to write out what has thousands of digits.
        bits = x.bit_length()
        return super().repr_int(x, level) if bits <= limits.NUMBER_BITS else f"a number of {bits} bits"


_SHORT = _Short()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 80


def read_json(text: str, what: str, most: int = limits.FILE_CHARACTERS) -> Any:
    """The value that a JSON text of at most so many characters says; `what` it is begins every message.

    Raises:
        ParseError: malformed, a key given twice, a number that is not finite, or beyond `limits`.
    """
    if not isinstance(text, str):
        raise ParseError(f"{what} is JSON text, not {type(text).__name__}")
    if len(text) > most:
        raise ParseError(f"{what} has {len(text)} characters; at most {most} are read")
    _check_tokens(text, what)

    def members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise ParseError(f"{what} gives {shown(key)} twice in one object")
            found[key] = value
        return found

    try:
        return json.loads(text, object_pairs_hook=members)
    except json.JSONDecodeError as error:
        raise ParseError(f"{what} is not valid JSON: {error.msg}", line=error.lineno, column=error.colno) from None


def shown(value: object) -> str:
    """A value in a message: as Python would write it, on one line and not too long."""
    return _SHORT.repr(value)


def is_text(value: object) -> bool:
    """Whether a value is a string that can be written to a file, and not too long."""
    return (
        isinstance(value, str)
        and len(value) <= limits.STRING_CHARACTERS
        and not any("\ud800" <= c <= "\udfff" for c in value)
    )


def _check_tokens(text: str, what: str) -> None:
    """Refuses what the reader of JSON would take silently, or not survive."""
    depth = 0
    for token in _TOKEN.finditer(text):
        first = token[0][0]
        if first in "[{":
            depth += 1
        elif first in "]}":
            depth -= 1
        elif first == '"':
            continue
        elif token[0][-1] in "yN":
            raise _at(token.start(), text, f"{what} has {token[0]}, which is not a finite number")
        elif len(token[0]) > limits.DIGITS:
            raise _at(token.start(), text, f"{what} has a number of more than {limits.DIGITS} digits")
        if depth > limits.JSON_DEPTH:
            raise _at(token.start(), text, f"{what} nests deeper than {limits.JSON_DEPTH}")


def _at(index: int, text: str, message: str) -> ParseError:
    return ParseError(message, line=text.count("\n", 0, index) + 1, column=index - text.rfind("\n", 0, index))
