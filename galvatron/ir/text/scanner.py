"""A text and a position in it: takes words and names, and refuses what is wrong where it stands."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import cache
from itertools import islice
from typing import NoReturn, TypeVar

from galvatron.errors import GalvatronError, ParseError
from galvatron.ir import limits
from galvatron.ir.text import tokens
from galvatron.ir.text.budget import Budget
from galvatron.ir.types import Length

Item = TypeVar("Item")
Token = re.Pattern[str]

_COMMENT = re.compile(rf"{tokens.STRING}?|//[^\n]*")
"""A comment; or a string, in which `//` begins none, whether or not it ends."""

_LEXEME = re.compile(r'"[^"\n]*"|\w+|[^\w\s]')
_FOUND = re.compile(rf"{tokens.STRING}|[%@#]?[\w.]+|[][(){{}},:=*/+×-]")
_SHOWN_WIDTH, _SHOWN_MESSAGE = 160, 1000


def token(pattern: str) -> Token:
    """A pattern, and the blanks after what it matches."""
    return re.compile(rf"({pattern}){tokens.BLANKS}")


@cache
def literal(text: str) -> Token:
    """A keyword, which does not go on as a longer word, or a mark."""
    return token(re.escape(text) + (r"(?![\w.])" if text[-1].isalnum() or text[-1] == "_" else ""))


NAME = token(tokens.NAME)
INT = token(rf"{tokens.INT}(?!\w)")
KEY = token(rf"{tokens.NAME}(?={tokens.BLANKS}=)")
_LABEL = token(rf"{tokens.LABEL}|{tokens.STRING}")
_VALUE = token(f"%{tokens.SIGILED}")
_CLASS = token(f"@{tokens.SIGILED}")
_KEYWORD = token(r"[a-z_]+(?![\w.])")
_MORE = token(",")
_START = re.compile(tokens.BLANKS)


class Template(str):
    """A bare name with loop counters in it, such as `layers.{i}.weight`, and where it stands."""

    at: int


class Scanner:
    """Reads a text from its beginning to its end.

    Attributes:
        text: the text, with blanks in place of comments.
        at: where its next word begins.
        looping: whether that is in a loop, where names may count.
        budget: what the text may still cost.
        lengths: the free sizes that the text has named so far.

    Raises:
        ParseError: (every method) with line and column, and the line of the text.
    """

    def __init__(self, text: str) -> None:
        self._original = text
        self._check_length(text)
        self.text = _COMMENT.sub(_without_comment, text) if "//" in text else text
        self.at = _START.match(self.text).end()  # type: ignore[union-attr]  # matches nothing, too
        self.looping = False
        self.budget = Budget(len(text))
        self.lengths: dict[str, Length] = {}

    # Words

    def take(self, wanted: Token) -> str | None:
        """What a pattern matches here, which is then behind; None, and nothing happens, where it does not match."""
        match = wanted.match(self.text, self.at)
        if match is None:
            return None
        self.at = match.end()
        return match[1]

    def accept(self, text: str) -> bool:
        """Whether this keyword or mark stands here; it is then behind."""
        return self.take(literal(text)) is not None

    def expect(self, *texts: str) -> None:
        """Goes past these keywords and marks."""
        for text in texts:
            if self.take(literal(text)) is None:
                self.unexpected(repr(text))

    def expected(self, wanted: Token, what: str) -> str:
        """What a pattern matches here; `what` it is, is said where something else stands."""
        found = self.take(wanted)
        return self.unexpected(what) if found is None else found

    def keyword(self) -> str:
        """The keyword that stands here and is not yet behind; empty if there is none."""
        match = _KEYWORD.match(self.text, self.at)
        return "" if match is None else match[1]

    def more(self) -> bool:
        """Whether a comma stands here; it is then behind."""
        return self.take(_MORE) is not None

    def stands(self, mark: str) -> bool:
        """Whether this mark stands here; it is not yet behind."""
        return self.text.startswith(mark, self.at)

    def listed(self, read: Callable[[], Item], close: str) -> tuple[Item, ...]:
        """What is read one after another, with commas between, up to a closing mark; perhaps nothing."""
        if self.accept(close):
            return ()
        items = self.separated(read)
        if not self.accept(close):
            self.unexpected("','", repr(close))
        return items

    def separated(self, read: Callable[[], Item]) -> tuple[Item, ...]:
        """What is read one after another, with commas between; at least once."""
        items = [read()]
        while self.more():
            items.append(read())
        return tuple(items)

    def end(self) -> None:
        """Checks that nothing is left."""
        if self.at < len(self.text):
            self.unexpected()

    # Names and numbers

    def integer(self) -> int:
        """A whole number."""
        at = self.at
        return self.number(self.expected(INT, "a whole number"), at)

    def number(self, digits: str, at: int) -> int:
        """The number that the digits in the text at `at` are."""
        if len(digits) > limits.DIGITS:
            self.refuse(f"a number of more than {limits.DIGITS} digits", at)
        return int(digits)

    def name(self) -> str:
        """A bare or quoted name."""
        at = self.at
        return self._name(self.expected(_LABEL, "a name"), at)

    def value(self) -> str:
        """The name of a `%value`."""
        at = self.at
        return self._name(self.expected(_VALUE, "a %value")[1:], at)

    def class_name(self) -> str:
        """The name of a `@class`."""
        at = self.at
        return self._name(self.expected(_CLASS, "a @class")[1:], at)

    def values(self) -> tuple[str, ...]:
        """Names of values, or `_` for none."""
        return () if self.accept("_") else self.separated(self.value)

    def names(self) -> tuple[str, ...]:
        """Names in parentheses."""
        self.expect("(")
        if self.stands(")"):
            self.unexpected("a name")
        return self.listed(self.name, ")")

    def _name(self, found: str, at: int) -> str:
        if found[0] == '"':
            return self.unquoted(found, at)
        if len(found) > limits.STRING_CHARACTERS:
            self.refuse(f"a name of more than {limits.STRING_CHARACTERS} characters", at)
        if "{" not in found:
            return found
        if not self.looping:
            self.refuse(f"{found} counts with a loop, but there is no loop here", at)
        template = Template(found)
        template.at = at
        return template

    def unquoted(self, string: str, at: int) -> str:
        """What the string literal in the text at `at` says."""
        if "\\" not in string and string.isprintable():
            text = string[1:-1]
        else:
            try:
                text = json.loads(string)
            except ValueError as error:
                self.refuse(f"malformed string: {error}", at)
        if len(text) > limits.STRING_CHARACTERS:
            self.refuse(f"a string of more than {limits.STRING_CHARACTERS} characters", at)
        return text

    # Costs and refusals

    def pay(self, names: tuple[str, ...], times: int, at: int) -> None:
        """Pays for names that what stands at `at` writes out several times."""
        try:
            self.budget.expand(names, times)
        except GalvatronError as error:
            self.refuse(str(error), at)

    def unexpected(self, *wanted: str) -> NoReturn:
        """Refuses what stands here, where something else should."""
        told = f"expected {', '.join(sorted(wanted))}" if wanted else "nothing more is expected"
        if self.at >= len(self.text):
            self.refuse(f"the text ends too early; {told}", len(self.text.rstrip()))
        found = _FOUND.match(self.text, self.at)
        what = f"character {self.text[self.at]!r}" if found is None else f"{found[0]!r}"
        self.refuse(f"unexpected {what}; {told}", self.at)

    def refuse(self, message: str, at: int) -> NoReturn:
        """Refuses what stands at `at`."""
        start = self._original.rfind("\n", 0, at) + 1
        end = self._original.find("\n", at)
        shown = self._original[start : end if end >= 0 else None].rstrip()
        line, column = self._original.count("\n", 0, at) + 1, at - start + 1
        left = max(0, column - 100) if len(shown) > _SHOWN_WIDTH else 0
        caret = " " * (column - 1 - left) + "^"
        message = message if len(message) <= _SHOWN_MESSAGE else f"{message[:_SHOWN_MESSAGE]} …"
        excerpt = f"{shown[left : left + _SHOWN_WIDTH]}\n  {caret}"
        raise ParseError(f"{message}\n  {excerpt}", line=line, column=column)

    def _check_length(self, text: str) -> None:
        """Refuses at once what would take long to refuse later."""
        if len(text) > limits.FILE_CHARACTERS:
            raise ParseError(f"the text has {len(text)} characters; at most {limits.FILE_CHARACTERS} are read")
        start = 0
        while len(text) - start > limits.LINE_CHARACTERS:
            end = text.rfind("\n", start, start + limits.LINE_CHARACTERS + 1)
            if end < 0:
                self.refuse(f"a line of more than {limits.LINE_CHARACTERS} characters", start)
            start = end + 1
        most = min(limits.LEXEMES, limits.SHORT_TEXT_LEXEMES + len(text) // limits.LEXEME_CHARACTERS)
        beyond = next(islice(_LEXEME.finditer(text), most, None), None)
        if beyond is not None:
            self.refuse(f"more than {most} words and marks", beyond.start())


def _without_comment(match: re.Match[str]) -> str:
    return match[0] if match[0][0] == '"' else " " * len(match[0])
