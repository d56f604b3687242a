"""Sheets of numbers, and files of them: a line of JSON that says what is in the file, and the numbers behind it.

Such a file is read, never executed: whatever is not as `written` makes it is an error.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from galvatron.errors import GalvatronError

Key = tuple[str, int, str, int]
"""What a sheet is of: an answer of a cost model, the kind of a layer, which ties are whole, and samples."""

_FORMAT = "galvatron costs 2"


@dataclass(frozen=True, eq=False)
class Sheet:
    """Figures (rows) of many numbered things (columns): their numbers, in increasing order, and the figures."""

    numbers: np.ndarray
    figures: np.ndarray

    @staticmethod
    def empty(rows: int) -> Sheet:
        """A sheet of nothing."""
        return Sheet(np.zeros(0, dtype=np.int64), np.zeros((rows, 0)))

    @staticmethod
    def of_one(figures: Mapping[int, float]) -> Sheet:
        """A sheet of one row, of figures by their numbers."""
        numbers = np.array(sorted(figures), dtype=np.int64)
        return Sheet(numbers, np.array([[figures[number] for number in numbers.tolist()]]))

    def places(self, numbers: np.ndarray) -> np.ndarray:
        """The columns of some numbers, -1 for those that it lacks."""
        if not len(self.numbers):
            return np.full(numbers.shape, -1)
        found = np.minimum(np.searchsorted(self.numbers, numbers), len(self.numbers) - 1)
        return np.where(self.numbers[found] == numbers, found, -1)

    def with_more(self, numbers: np.ndarray, figures: np.ndarray) -> Sheet:
        """The same with the figures of others."""
        every = np.concatenate([self.numbers, numbers])
        order = np.argsort(every, kind="stable")
        return Sheet(every[order], np.concatenate([self.figures, figures], axis=1)[:, order])


def written(name: str, told: Mapping[str, Any], sheets: Mapping[Key, Sheet]) -> bytes:
    """A file of sheets.

    Args:
        name: of all that the figures follow from.
        told: what else the file tells, such as the strategies that things are numbered after; it may be JSON.
    """
    shapes = [[*key, *sheet.figures.shape] for key, sheet in sheets.items()]
    numbers = b"".join(sheet.numbers.astype("<i8").tobytes() for sheet in sheets.values())
    figures = b"".join(sheet.figures.astype("<f8").tobytes() for sheet in sheets.values())
    return sealed(name, json.dumps({**told, "sheets": shapes}).encode() + b"\n" + numbers + figures)


def read(name: str, data: bytes) -> tuple[dict[str, Any], dict[Key, Sheet]]:
    """What `written` was given, but that nobody has looked at what else is told.

    Raises:
        GalvatronError: the file is of something else, or damaged.
    """
    header, _, payload = opened(name, data).partition(b"\n")
    try:
        told = dict(json.loads(header))
        return told, dict(_sheets(list(map(_shape, told.pop("sheets"))), payload))
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise GalvatronError(f"it is malformed: {error}") from None


def sealed(name: str, content: bytes) -> bytes:
    """A file of some content that says what it is of, with a checksum."""
    return _first_line(name, content) + content


def opened(name: str, data: bytes) -> bytes:
    """The content that was `sealed`.

    Raises:
        GalvatronError: the file is of something else, or damaged.
    """
    first, _, content = data.partition(b"\n")
    if first + b"\n" != _first_line(name, content):
        raise GalvatronError("it is of another program or version, or damaged")
    return content


def _first_line(name: str, content: bytes) -> bytes:
    return f"{_FORMAT} {name} {hashlib.sha256(content).hexdigest()}\n".encode()


def _shape(told: Any) -> tuple[Key, int, int]:
    what, kind, whole, samples, rows, columns = told
    if [type(part) for part in told] != [str, int, str, int, int, int] or min(rows, columns) < 0:
        raise ValueError("a sheet has no such shape")
    return (what, kind, whole, samples), rows, columns


def _sheets(shapes: list[tuple[Key, int, int]], payload: bytes) -> Iterator[tuple[Key, Sheet]]:
    many = sum(columns for _, _, columns in shapes)
    if len(payload) != 8 * (many + sum(rows * columns for _, rows, columns in shapes)):
        raise ValueError("there are not as many numbers as it says")
    numbers, figures = np.frombuffer(payload[: 8 * many], "<i8"), np.frombuffer(payload[8 * many :], "<f8")
    for key, rows, columns in shapes:
        own, numbers = numbers[:columns], numbers[columns:]
        table, figures = figures[: rows * columns].reshape(rows, columns), figures[rows * columns :]
        if (np.diff(own) <= 0).any():
            raise ValueError("the numbers of a sheet do not increase")
        yield key, Sheet(own, table)
