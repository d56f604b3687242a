"""Why a model cannot be captured, in one sentence, and the line of it that is to blame."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from galvatron.errors import CaptureError
from galvatron.ir.capture.sources import is_user_file, located, source_of_error, source_of_line
from galvatron.ir.graph import Source
from galvatron.ir.types import BATCH


def explained(error: Exception, trace_again: Callable[[BatchSizeWatch], Any]) -> CaptureError:
    """The `CaptureError` for what `torch.export` raised.

    `trace_again` traces the model once more, with a watch on the batch size; called only if the size is the reason.
    """
    if isinstance(error, CaptureError):
        return error
    chain = list(_chain(error))
    if any(isinstance(e, GuardOnDataDependentSymNode) for e in chain):
        reason = "control flow or a size depends on the values of a tensor, which are not known before training"
        return CaptureError(f"{located(_innermost(chain))}{reason}: use tensor operations such as torch.where")
    if "Constraints violated" in str(error) or "specialized" in str(error):
        return _batch_size_error(error, trace_again)
    summary = str(chain[0]).strip().splitlines()
    what = f"{type(chain[0]).__name__}: {summary[0]}" if summary else type(chain[0]).__name__
    return CaptureError(f"{located(_innermost(chain))}the model cannot be traced without running it: {what}")


def _chain(error: BaseException) -> Iterator[BaseException]:
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__ or current.__context__


def _innermost(chain: list[BaseException]) -> Source | None:
    return next((source for source in map(source_of_error, chain) if source is not None), None)


def _batch_size_error(error: Exception, trace_again: Callable[[BatchSizeWatch], Any]) -> CaptureError:
    watch = BatchSizeWatch()
    with contextlib.suppress(Exception):
        trace_again(watch)
    if watch.culprit is None:
        reason = next((line for line in str(error).splitlines() if line.strip().startswith("-")), str(error))
        return CaptureError(f"the model does not work for every batch size: {reason.strip(' -')}")
    advice = "derive sizes from the inputs, as in x.shape[0], or let -1 stand for the batch"
    return CaptureError(f"{located(watch.culprit)}{watch.finding}: {advice}")


@dataclass
class BatchSizeWatch:
    """Watches a forward, line by line, for the first one that holds for some batch sizes only.

    `culprit` is that line and `finding` says what it demands of the batch size.
    """

    culprit: Source | None = None
    finding: str = ""

    @contextlib.contextmanager
    def watching(self, size: torch.SymInt) -> Iterator[None]:
        """Watches what happens to a symbolic batch size inside the `with` block."""
        symbol, environment = size.node.expr, size.node.shape_env
        last: tuple[str, int] | None = None

        def check() -> None:
            if self.culprit is None and last is not None:
                finding = _demand(symbol, environment)
                if finding:
                    self.culprit, self.finding = source_of_line(*last), finding

        def on_event(frame: types.FrameType, event: str, _: Any) -> Any:
            nonlocal last
            if not is_user_file(frame.f_code.co_filename):
                return None
            if event in ("line", "return"):
                check()
            if event == "line":
                last = frame.f_code.co_filename, frame.f_lineno
            if event == "return":
                last = _user_line_above(frame) or last
            return on_event

        before = sys.gettrace()
        sys.settrace(on_event)
        try:
            yield
        finally:
            sys.settrace(before)
            check()


def _user_line_above(frame: types.FrameType) -> tuple[str, int] | None:
    above = frame.f_back
    while above is not None and not is_user_file(above.f_code.co_filename):
        above = above.f_back
    return None if above is None else (above.f_code.co_filename, above.f_lineno)


def _demand(symbol: sympy.Symbol, environment: Any) -> str:
    fixed = environment.replacements.get(symbol)
    if fixed is not None and fixed.is_number:
        return f"the model fixes the batch size at {fixed}"
    for guard in environment.guards:
        if guard.expr.free_symbols == {symbol} and any(guard.expr.subs(symbol, n) == sympy.false for n in range(2, 34)):
            return f"the model works only for batch sizes B with {guard.expr.subs(symbol, BATCH)}"
    return ""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps torch's own log lines, dumps and deprecation warnings off the screen; what it raises says enough."""
    before, screen = logging.root.manager.disable, io.StringIO()
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(screen):
            warnings.simplefilter("ignore", FutureWarning)
            yield
        sys.stderr.write(screen.getvalue())
    finally:
        logging.disable(before)
