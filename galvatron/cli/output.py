"""What the command line writes, and how."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from galvatron.errors import GalvatronError

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


def file_to_write(text: str | Path) -> Path:
    """What `-o` names.

    Raises:
        GalvatronError: a directory.
    """
    if str(text).endswith("/") or Path(text).is_dir():
        raise GalvatronError(f"{str(text)!r} is a directory: name a file in it with -o")
    return Path(text)


def check_is_no_input(path: Path, *inputs: Path | None) -> None:
    """
    Raises:
        GalvatronError: the file that is to be written is one of those that are read.
    """
    if any(one is not None and one.exists() and path.exists() and path.samefile(one) for one in inputs):
        raise GalvatronError(f"{str(path)!r} is read by this command and would be overwritten: name another with -o")


def write_or_print(path: Path, text: str) -> None:
    """Writes a file that the user named; `-` is stdout.

    Raises:
        GalvatronError: it cannot be written; names the path.
    """
    if str(path) == "-":
        print(text, end="")
    else:
        write_file(path, text)


def write_file(path: Path, text: str) -> None:
    """Writes a file that the user named; directories are made.

    Raises:
        GalvatronError: it cannot be written; names the path.
    """
    from galvatron.ir.files import write_text

    try:
        write_text(path, text)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise GalvatronError(f"cannot write {str(path)!r}: {reason}") from None
