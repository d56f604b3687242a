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
    "verify": lambda _: VerifyEach(),
    "check": lambda _: _compared,
    "print": lambda _: PrintPrograms(after_change=True),
    "diff": lambda _: PrintPrograms(after_change=True, differences=True),
    "dump": lambda folder: DumpTree(Path(folder or "galvatron-passes")),
    "stats": lambda _: PrintCounts(),
    "seconds": lambda _: _seconds,
}
"""Instruments by name: whether what passes give is valid, and computes the same; programs after passes that change
them, or in what these do; programs in files (`dump=DIR`); what passes did; how long they take. Those of the variable
stand around passes in this order, so that what is refused has been shown, and the clock sees nothing but the pass."""


def check_instruments(instruments: Sequence[Instrument | str]) -> None:
    """
    Raises:
        GalvatronError: it is no list of what can be called.
    """
    if not isinstance(instruments, (list, tuple)):
        raise GalvatronError(f"instrument is a list of instruments, not {shown(instruments)}")
    for instrument in instruments:
        if isinstance(instrument, str):
            named(instrument, "instrument")
        elif not callable(instrument):
            raise GalvatronError(
                f"instrument has {shown(instrument)}, which is not called with a step and a function that runs the pass"
            )


@contextmanager
def instrumented(instruments: Sequence[Instrument | str]) -> Iterator[None]:
    """Passes in the block run inside these instruments, the first of them outermost; see `named`."""
    token = _AROUND.set(tuple(named(one, "instrument") if isinstance(one, str) else one for one in instruments))
    try:
        yield
    finally:
        _AROUND.reset(token)


def named(text: str, by: str) -> Instrument:
    """An instrument by its name in `NAMED`, such as `diff` or `dump=passes`.

    Args:
        by: what names it.

    Raises:
        GalvatronError: there is none of that name.
    """
    name, _, argument = text.partition("=")
    if name not in NAMED:
        raise GalvatronError(f"{by} names {name!r}; {did_you_mean(name, NAMED)}")
    return NAMED[name](argument)


def around() -> tuple[Instrument, ...]:
    """The instruments of the caller, and those that the environment variable names for the first rank of a job.

    Raises:
        GalvatronError: the variable names an instrument that there is not.
    """
    text = os.environ.get(VARIABLE, "") if os.environ.get("RANK", "0") == "0" else ""
    order = {name: place for place, name in enumerate(NAMED)}
    items = sorted(filter(None, map(str.strip, text.split(","))), key=lambda item: order.get(item.partition("=")[0], 0))
    return (*_AROUND.get(), *(named(item, VARIABLE) for item in items))
