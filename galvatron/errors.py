"""Every error that Galvatron raises on bad input: what was wrong, where, and what to do about it."""

from __future__ import annotations

import difflib
import heapq
import os
import re
import string
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from traceback import walk_tb
from typing import NamedTuple

_HERE = f"{Path(__file__).parent}{os.sep}"
_BELOW = re.compile(r"-packages[/\\](torch|sympy|mpmath|numpy)[/\\]")
_BELOW_PATHS = (f"{sysconfig.get_path('stdlib')}{os.sep}", "<")
"""Libraries that are called with arguments of their callers, which so are at fault where they raise."""

_COMPARED_CHARACTERS, _COMPARED_NAMES, _SHOWN_NAMES = 200, 500, 40
"""Names that are compared with an unknown one letter by letter: how long, how many; and how many a message lists."""


class GalvatronError(Exception):
    """Base of all errors raised for a user's input; the message says what, where and what to do."""


class CaptureError(GalvatronError):
    """The model cannot be captured; the message names the user's source line."""


class StrategyError(GalvatronError):
    """A strategy or plan shorthand does not parse or does not fit the device group."""


class PlanError(GalvatronError):
    """A plan cannot be executed for this program, batch or world size."""


class ClusterError(GalvatronError):
    """A cluster description or preset is unknown or malformed."""


class BudgetError(PlanError):
    """No plan fits the memory budget; the message names the nearest miss."""


class PassError(GalvatronError):
    """A pass or pipeline text is unknown, malformed, or applied to the wrong form."""


class RankError(GalvatronError):
    """Another rank of the job failed first; the message is that rank's error."""


class NonFiniteError(GalvatronError):
    """A step computed a number that is not finite; the message names the first layer, rank and micro-batch."""


class CheckError(GalvatronError):
    """What the model itself asks of its values does not hold; the message names its line, and what it would raise."""


class InternalError(GalvatronError):
    """A bug of Galvatron; the message says where a reproducer was written."""


class Problem(NamedTuple):
    """What is wrong with one line of a program: `text` is that line, `section` the last line before it that opens a
    part of the program."""

    message: str
    section: str
    text: str


class VerifyError(GalvatronError):
    """A program breaks a rule of its form; the message shows the program with the line marked.

    Attributes:
        rule, meaning: the rule's name, and what it asks for.
        problems: what breaks it.
    """

    def __init__(self, message: str, *, rule: str = "", meaning: str = "", problems: tuple[Problem, ...] = ()) -> None:
        super().__init__(message)
        self.rule, self.meaning, self.problems = rule, meaning, problems


class ParseError(GalvatronError):
    """A text file is malformed; the message gives line and column."""

    def __init__(self, message: str, *, line: int | None = None, column: int | None = None) -> None:
        where = f"line {line}, column {column}: " if line is not None else ""
        super().__init__(where + message)
        self.line = line
        self.column = column


def error_of_kind(kind: str, message: str) -> GalvatronError:
    """The error that another process raised, by the name of its class."""
    cls = globals().get(kind)
    return cls(message) if isinstance(cls, type) and issubclass(cls, GalvatronError) else GalvatronError(message)


def raised_at(error: BaseException) -> tuple[str, bool]:
    """The file and line at which an error was raised, in libraries below the line that called them, and whether that
    is in code of Galvatron."""
    places = [(frame.f_code.co_filename, line) for frame, line in walk_tb(error.__traceback__)]
    above = [place for place in places if not _BELOW.search(place[0]) and not place[0].startswith(_BELOW_PATHS)]
    file, line = (above or places)[-1]
    return f"{file}:{line}", file.startswith(_HERE)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The tail of an "unknown name" message: the closest known names, or the first of them when none is close."""
    options = list(known)
    if not options:
        return "there are none"
    close = _one_edit_away(word, set(options)) if len(options) > _COMPARED_NAMES else _alike(word, options)
    if close:
        return f"did you mean {' or '.join(repr(c) for c in close[:3])}?"
    shown = heapq.nsmallest(_SHOWN_NAMES, options)
    more = f", … ({len(options)} in all)" if len(options) > len(shown) else ""
    return f"known: {', '.join(shown)}{more}"


def _alike(word: str, options: list[str]) -> list[str]:
    short = sorted(option for option in options if len(option) <= _COMPARED_CHARACTERS)
    return difflib.get_close_matches(word[:_COMPARED_CHARACTERS], short)


def _one_edit_away(word: str, options: set[str]) -> list[str]:
    """Of many names, which take long to compare, those that one wrong, missing or additional letter makes of a word."""
    if len(word) > _COMPARED_CHARACTERS:
        return []
    letters = ["", *sorted({*word, *string.ascii_lowercase, *string.digits, *"._-"})]
    cuts = [(word[:i], word[i:]) for i in range(len(word) + 1)]
    changed = (head + letter + tail[skip:] for head, tail in cuts for letter in letters for skip in (0, 1))
    return sorted(options.intersection(changed))
