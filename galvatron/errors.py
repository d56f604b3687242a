"""Every error that Galvatron raises on bad input: what was wrong, where, and what to do about it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


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


class InternalError(GalvatronError):
    """A bug of Galvatron; the message says where a reproducer was written."""


class VerifyError(GalvatronError):
    """A program breaks a rule of its form; the message shows the program with the line marked."""

    def __init__(self, message: str, *, rule: str = "") -> None:
        super().__init__(message)
        self.rule = rule


class ParseError(GalvatronError):
    """A text file is malformed; the message gives line and column."""

    def __init__(self, message: str, *, line: int | None = None, column: int | None = None) -> None:
        where = f"line {line}, column {column}: " if line is not None else ""
        super().__init__(where + message)
        self.line = line
        self.column = column


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The tail of an "unknown name" message: the closest known names, or all of them when none is close."""
    options = sorted(known)
    close = difflib.get_close_matches(word, options, n=3)
    if close:
        return f"did you mean {' or '.join(repr(c) for c in close)}?"
    return f"known: {', '.join(options)}"
