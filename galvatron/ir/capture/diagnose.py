"""Why a model cannot be captured, in one sentence, and the line of it that is to blame."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from galvatron.errors import CaptureError
from galvatron.ir.capture.samples import NoSamplesError, is_range
from galvatron.ir.capture.sources import is_user_file, located, source_of_error, source_of_line
from galvatron.ir.graph import Source
from galvatron.ir.types import BATCH


def explained(error: Exception, trace_again: Callable[[BatchSizeWatch], Any], batch_size: int) -> CaptureError:
    """The `CaptureError` for what `torch.export` raised on a batch of that size.

    `trace_again` traces the model once more, with a watch on the batch size; called only if the size is the reason.
    """
    if isinstance(error, CaptureError):
        return error
    chain = list(_chain(error))
    if any(isinstance(e, GuardOnDataDependentSymNode) for e in chain):
        reason = "control flow or a size depends on the values of a tensor, which are not known before training"
        return CaptureError(f"{located(_innermost(chain))}{reason}: use tensor operations such as torch.where")
    if isinstance(error, NoSamplesError) or "Constraints violated" in str(error) or "specialized" in str(error):
        return _batch_size_error(trace_again, batch_size)
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


def _batch_size_error(trace_again: Callable[[BatchSizeWatch], Any], batch_size: int) -> CaptureError:
    watch = BatchSizeWatch(batch_size)
    with contextlib.suppress(Exception):
        trace_again(watch)
    if watch.culprit is None:
        return CaptureError(
            f"the model fixes the size of every input on dim 0, the batch size at {batch_size} too: derive sizes from "
            "the inputs, as in x.shape[0]"
        )
    advice = "derive sizes from the inputs, as in x.shape[0], or let -1 stand for the batch"
    return CaptureError(f"{located(watch.culprit)}{watch.finding}: {advice}")


@dataclass
class BatchSizeWatch:
    """Watches a forward on `batch_size` samples, line by line, for the first one that holds for some batch sizes only.

    `culprit` is that line and `finding` says what it demands of the batch size.
    """

    batch_size: int
    culprit: Source | None = None
    finding: str = ""

    @contextlib.contextmanager
    def watching(self, sizes: Sequence[torch.SymInt]) -> Iterator[None]:
        """Watches what happens to symbolic sizes inside the `with` block: the first that may be the batch size."""
        size = next((s for s in sizes if s.node.hint == max(self.batch_size, 2)), None)
        if size is None:
            yield
            return
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
    size = environment.replace(symbol)
    if size.is_number:
        return f"the model fixes the batch size at {size}"
    for guard in environment.guards:
        condition = environment.replace(guard.expr)
        if condition.free_symbols == {size} and not is_range(condition.subs(size, BATCH)):
            return f"the model works only for batch sizes B with {condition.subs(size, BATCH)}"
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
