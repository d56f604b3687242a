"""What stands around the passes of `compile`, `capture` and the others: instruments of the caller, and of an
environment variable for a script that cannot be edited.

    galvatron.compile(model, batch, instrument=[PrintPrograms(after_change=True, differences=True), DumpTree("passes")])
    GALVATRON_PASSES=diff,seconds,dump=passes torchrun --nproc-per-node 4 train.py
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from galvatron.errors import GalvatronError, did_you_mean
from galvatron.ir.documents import shown
from galvatron.passes.base import PassResult
from galvatron.passes.counting import Counting, PrintCounts
from galvatron.passes.instrument import Timing, VerifyEach
from galvatron.passes.pipeline import Instrument, Step
from galvatron.passes.printing import DumpTree, PrintPrograms

__all__ = ["Counting", "DumpTree", "PrintPrograms", "Timing", "VerifyEach", "around", "instrumented"]

VARIABLE = "GALVATRON_PASSES"
"""Names of `NAMED`, with commas between them."""

_AROUND: ContextVar[tuple[Instrument, ...]] = ContextVar("around", default=())


def _seconds(step: Step, proceed: Callable[[], PassResult]) -> PassResult:
    """Instrument: says how long each pass took."""
    began = time.perf_counter()
    try:
        return proceed()
    finally:
        print(f"// {step.pass_.name}: {time.perf_counter() - began:.3f} s", file=sys.stderr)


def _compared(step: Step, proceed: Callable[[], PassResult]) -> PassResult:
    """Instrument: runs the program before and after each pass."""
    from galvatron.debugging.passes import CompareEach

    return CompareEach()(step, proceed)


NAMED: dict[str, Callable[[str], Instrument]] = {
    "print": lambda _: PrintPrograms(after_change=True),
    "diff": lambda _: PrintPrograms(after_change=True, differences=True),
    "dump": lambda folder: DumpTree(Path(folder or "galvatron-passes")),
    "seconds": lambda _: _seconds,
    "stats": lambda _: PrintCounts(),
    "verify": lambda _: VerifyEach(),
    "check": lambda _: _compared,
}
"""Instruments by the names that the variable knows: programs after passes that change them, or in what these do;
programs in files (`dump=DIR`); how long passes take; what they did; whether what they give is valid, and computes the
same."""


def check_instruments(instruments: Sequence[Instrument]) -> None:
    """
    Raises:
        GalvatronError: it is no list of what can be called.
    """
    if not isinstance(instruments, (list, tuple)):
        raise GalvatronError(f"instrument is a list of instruments, not {shown(instruments)}")
    for instrument in instruments:
        if not callable(instrument):
            raise GalvatronError(
                f"instrument has {shown(instrument)}, which is not called with a step and a function that runs the pass"
            )


@contextmanager
def instrumented(instruments: Sequence[Instrument]) -> Iterator[None]:
    """Passes in the block run inside these instruments, the first of them outermost."""
    token = _AROUND.set(tuple(instruments))
    try:
        yield
    finally:
        _AROUND.reset(token)


def around() -> tuple[Instrument, ...]:
    """The instruments of the caller, and those that the environment variable names for the first rank of a job.

    Raises:
        GalvatronError: the variable names an instrument that there is not.
    """
    text = os.environ.get(VARIABLE, "") if os.environ.get("RANK", "0") == "0" else ""
    found: list[Instrument] = []
    for item in filter(None, map(str.strip, text.split(","))):
        name, _, argument = item.partition("=")
        if name not in NAMED:
            raise GalvatronError(f"{VARIABLE} names {name!r}; {did_you_mean(name, NAMED)}")
        found.append(NAMED[name](argument))
    return (*_AROUND.get(), *found)
