"""Why a model cannot be captured, in one sentence, and the line of it that is to blame."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import sys
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, UnsupportedOperatorException
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from galvatron.errors import CaptureError
from galvatron.ir.capture.samples import NoSamplesError, is_range
from galvatron.ir.capture.sources import advice, is_user_file, located, source_of_error, source_of_line
from galvatron.ir.graph import Source
from galvatron.ir.types import BATCH


def explained(error: Exception, trace_again: Callable[[BatchSizeWatch], Any], batch_size: int) -> CaptureError:
    """The `CaptureError` for what `torch.export` raised on a batch of that size.

    `trace_again` traces the model once more, with a watch on the batch size; called only if the size is the reason.
    """
    if isinstance(error, CaptureError):
        return error
    chain = list(_chain(error))
    line = _innermost(chain)
    if any(isinstance(e, (GuardOnDataDependentSymNode, DataDependentOutputException)) for e in chain):
        reason = "control flow or a size depends on the values of a tensor, which are not known before training"
        return CaptureError(f"{located(line)}{reason}: {advice(line, 'use tensor operations such as torch.where')}")
    if isinstance(error, NoSamplesError) or "Constraints violated" in str(error) or "specialized" in str(error):
        return _batch_size_error(trace_again, batch_size)
    reason = "the model cannot be traced without running it"
    if any(sign in str(e) for e in chain for sign in _UNTRACEABLE_STATE):
        own = "assign such values outside of forward"
        what = "it changes a parameter or buffer through .data, or keeps a tensor of one call for the next"
        return CaptureError(f"{located(line)}{reason}: {what}: {advice(line, own)}")
    if torch.Generator.__name__ in str(chain[0]):
        return unreadable(line)
    if isinstance(chain[0], UnsupportedOperatorException):
        own = "use an operation on dense tensors"
        return CaptureError(f"{located(line)}{reason}: torch cannot trace {chain[0].func}: {advice(line, own)}")
    return CaptureError(f"{located(line)}{reason}: {_plain(chain[0])}")


def unreadable(line: Source | None) -> CaptureError:
    """For an object that a line of the model reads and that is no tensor."""
    own = "make it outside of forward, or do without (random numbers follow from torch.manual_seed)"
    return CaptureError(
        f"{located(line)}the model reads an object that cannot be captured, such as a random generator: "
        f"{advice(line, own)}"
    )


_UNTRACEABLE_STATE = ("exported program constant's list", "was mutated", "assigned during export")
"""Of what torch says about state that it lost sight of."""


def _plain(error: BaseException) -> str:
    """The first sentence of what was raised, with sizes and inputs under the user's names."""
    lines = str(error).strip().splitlines()
    text = re.sub(r"L\['batch'\]\['(\w+)'\]", r"\1", lines[0] if lines else "")
    text = re.sub(r"\b[su]\d+\b", "B", text).partition("Please file")[0].strip()
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


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
    own = "derive sizes from the inputs, as in x.shape[0] without int() or float(), or let -1 stand for the batch"
    return CaptureError(f"{located(watch.culprit)}{watch.finding}: {advice(watch.culprit, own)}")


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
            # What forward assigns is taken back.
            warnings.filterwarnings("ignore", "The tensor attribute.* assigned during export", UserWarning)
            yield
        sys.stderr.write(screen.getvalue())
    finally:
        logging.disable(before)
