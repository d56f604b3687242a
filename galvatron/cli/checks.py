"""Whether a program is as it should be: what `bisect` and `reduce` ask again and again."""

from __future__ import annotations

import shlex
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from galvatron.errors import GalvatronError

if TYPE_CHECKING:
    from galvatron.ir.program import Program

CheckCommand = Annotated[
    str | None,
    typer.Option(
        "--check",
        metavar="COMMAND",
        help="A command that fails where a program is wrong, with {} for its file; without it numbers are compared.",
    ),
]

SECONDS = 600
"""A command that takes longer has failed."""


def passes_check(command: str) -> Callable[[Program], bool]:
    """Whether a command of the user's succeeds for a program, which it finds in a file.

    Raises:
        GalvatronError: the command cannot be read, or there is none of that name.
    """
    from galvatron.ir.text import print_program

    try:
        words = shlex.split(command)
    except ValueError as error:
        raise GalvatronError(f"--check {command!r} is no command: {error}") from None
    if not words:
        raise GalvatronError("--check names no command")
    if "{}" not in command:
        words.append("{}")

    def succeeds(program: Program) -> bool:
        with tempfile.TemporaryDirectory(prefix="galvatron-") as folder:
            path = Path(folder) / "program.gir"
            path.write_text(print_program(program), encoding="utf-8")
            try:
                done = subprocess.run(
                    [word.replace("{}", str(path)) for word in words],
                    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=SECONDS, check=False,
                )  # fmt: skip
            except subprocess.TimeoutExpired:
                return False
            except OSError as error:
                raise GalvatronError(f"--check {command!r} cannot be run: {error}") from None
            return done.returncode == 0

    return succeeds
