"""What the command line writes, and how."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typer.core import TyperCommand

from galvatron.errors import GalvatronError
from galvatron.ir.files import exists, write_text
from galvatron.ir.json_values import finite
from galvatron.printing import printable

if TYPE_CHECKING:
    from galvatron.ir.plan import Plan


def accept_any_text() -> None:
    """Makes stdout and stderr write what their encoding does not have as an escape instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def log_on_stderr() -> Iterator[None]:
    """What the package logs in the block, at level `INFO`, is written to stderr."""
    log, handler = logging.getLogger("galvatron"), logging.StreamHandler()
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


def tie_line(plan: Plan) -> str:
    """How parameters are kept that layers share, on one line; empty if there are none."""
    from galvatron.ir.plan import kept_text

    ties = ", ".join(f"{name} {'' if kept is None else 'as under '}{kept_text(kept)}" for name, kept in plan.ties)
    return ties and f"shared parameters: {ties}"


class OutputFile(type(Path())):
    """A file that a command writes."""


STDOUT = OutputFile("-")
"""What is written there is printed."""


def file_to_write(text: str | Path) -> OutputFile:
    """The parser of an option that names a file for a command to write.

    Raises:
        GalvatronError: a directory.
    """
    if str(text).endswith("/") or Path(text).is_dir():
        raise GalvatronError(f"{str(text)!r} is a directory: name a file in it")
    return OutputFile(text)


_READ: ContextVar[tuple[Path, ...]] = ContextVar("read", default=())
"""The files that the command line names to be read."""


class FileCommand(TyperCommand):
    """A command that begins only where no file that it writes is one that it reads, or writes for something else, and
    writes none that it reads."""

    def invoke(self, ctx: Any) -> Any:
        named = list(_named(ctx))
        written = [one for one in named if isinstance(one, OutputFile)]
        token = _READ.set(tuple(file for one in named if not isinstance(one, OutputFile) for file in _files(one)))
        try:
            for place, path in enumerate(written):
                check_is_no_input(path)
                if any(_same_file(path, other) for other in written[:place]):
                    raise GalvatronError(f"{str(path)!r} would be written twice: name another file")
            return super().invoke(ctx)
        finally:
            _READ.reset(token)


def _named(ctx: Any) -> Iterator[str | Path]:
    """All words and paths of a command line."""
    while ctx is not None:
        for value in ctx.params.values():
            words = value if isinstance(value, (list, tuple)) else (value,)
            yield from (word for word in words if isinstance(word, (str, Path)))
        ctx = ctx.parent


def _files(word: str | Path) -> Iterator[Path]:
    """The files that a word names: as a whole, or as in FILE.py:NAME, use-plan{plan=PLAN.json} or "sh CHECK.sh"."""
    if isinstance(word, Path):
        names = [str(word)]
    else:
        names = [name for name in dict.fromkeys((word, *_BETWEEN_NAMES.split(word))) if "." in name or os.sep in name]
    return (Path(name) for name in names if exists(name))


_BETWEEN_NAMES = re.compile(r"[\s:,={}\[\]\"']+")


def _same_file(first: Path, second: Path) -> bool:
    """Whether two names are those of one file; what is no file, such as a terminal, may be read and written."""
    if "-" in (str(first), str(second)) or any(exists(str(path)) and not path.is_file() for path in (first, second)):
        return False
    if exists(str(first)) and exists(str(second)):
        return first.samefile(second)
    return os.path.abspath(first) == os.path.abspath(second)


def check_is_no_input(path: Path) -> None:
    """
    Raises:
        GalvatronError: the file that is to be written is one of those that the command reads.
    """
    if any(_same_file(path, one) for one in _READ.get()):
        raise GalvatronError(f"{str(path)!r} is read by this command and would be overwritten: name another file")


def as_json(value: Any) -> str:
    """A document for stdout or a file; None for numbers that are not finite."""
    return json.dumps(finite(value), indent=2, allow_nan=False)


def error_text(error: GalvatronError | OSError) -> str:
    """What went wrong, for a person."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def error_json(error: GalvatronError | OSError) -> dict[str, str]:
    """The same for JSON."""
    return {"type": type(error).__name__, "message": error_text(error)}


def say(text: object, *, err: bool = False) -> None:
    """Prints to stdout, or to stderr; names of strangers in it as plain text."""
    print(printable(str(text)), file=sys.stderr if err else sys.stdout)


def write_or_print(path: Path, text: str) -> None:
    """Writes a file that the user named; `-` is stdout.

    Raises:
        GalvatronError: see `write_file`.
    """
    if str(path) == "-":
        print(text, end="")
    else:
        write_file(path, text)


def write_file(path: Path, text: str) -> None:
    """Writes a file that the user named, or one in a directory that they did; directories are made.

    Raises:
        GalvatronError: the command reads it, or it cannot be written; names the path.
    """
    check_is_no_input(path)
    try:
        write_text(path, text)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise GalvatronError(f"cannot write {str(path)!r}: {reason}") from None
