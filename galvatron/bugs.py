"""An error of our own is said to be one, and what is needed to see it again is kept in a file."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from galvatron.errors import GalvatronError, InternalError, raised_at
from galvatron.ir.program import Program
from galvatron.ir.text import print_program
from galvatron.passes.base import PassResult
from galvatron.passes.pipeline import Pipeline, Step
from galvatron.runtime.failure import lost_a_peer


@contextmanager
def ours(doing: str, program: Program | None = None, command: str = "", *, others: bool = False) -> Iterator[None]:
    """Around our own work on right arguments: any error in it that is not a `GalvatronError` is a bug.

    Args:
        doing: what goes on, as in "error while `doing`".
        program: what it starts from.
        command: of the command line, which does the same to a program; the file's name comes after `galvatron opt`.
        others: code of others is called here, such as a pass or an instrument, and the bug may be in that.

    Raises:
        InternalError: the error, with the path of the reproducer.
        GalvatronError: the same, where code of others raised it.
    """
    try:
        yield
    except (GalvatronError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if lost_a_peer(error):
            raise
        where, is_ours = raised_at(error)
        what = f"{type(error).__name__} while {doing}, at {where}: {error}"
        if is_ours or not others:
            kept = f"please report it with the traceback above and {_reproducer(program, command)}"
            raise InternalError(f"this is a bug of Galvatron, not of your program: {what}\n{kept}") from error
        kept = "" if program is None else f"\nto see it again: {_reproducer(program, command)}"
        raise GalvatronError(f"{what}\nthat code is not Galvatron's{kept}") from error


def in_passes(step: Step, proceed: Callable[[], PassResult]) -> PassResult:
    """Instrument: an error of a pass that is not a `GalvatronError` is a bug; see `ours`."""
    rest = Pipeline(step.pipeline.passes[step.index :])
    with ours(f"running pass {step.pass_.name!r}", step.program, f"--passes '{rest}'", others=True):
        return proceed()


def _reproducer(program: Program | None, command: str) -> str:
    """Where the program was written, or why it was not."""
    if program is None:
        return "the model"
    try:
        handle, path = tempfile.mkstemp(prefix="galvatron-bug-", suffix=".gir")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(f"// galvatron opt {path} {command}\n" if command else "")
            file.write(print_program(program))
    except Exception as error:  # whatever goes wrong here must not hide what is being reported
        return f"the model; no reproducer could be written: {error}"
    return f"the reproducer {path}"
