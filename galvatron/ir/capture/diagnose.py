"""Why a model cannot be captured, in one sentence, and the line of it that is to blame."""

from __future__ import annotations

import contextlib
import gc
import io
import logging
import re
import sys
import types
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from traceback import walk_tb
from typing import Any

import sympy
import torch
from torch import nn
from torch._dynamo.exc import UncapturedHigherOrderOpError
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedOperatorException,
)
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from galvatron.errors import CaptureError
from galvatron.ir.capture.batch import Batch, Place
from galvatron.ir.capture.lengths import FixedLengthError
from galvatron.ir.capture.ranges import NoSamplesError, is_range
from galvatron.ir.capture.sources import OF_BATCH_NORM, advice, is_user_file, located, source_of_error, source_of_line
from galvatron.ir.graph import Source
from galvatron.ir.types import BATCH


def explained(
    error: Exception,
    trace_again: Callable[[SizeWatch], Any],
    batch: Batch,
    numbers: Mapping[sympy.Basic, str],
) -> CaptureError:
    """The `CaptureError` for what `torch.export` raised on a batch.

    `trace_again` traces the model once more, with a watch on a size; called only if the size is the reason.
    `numbers` are the symbols of the batch's numbers, with their names.
    """
    if isinstance(error, CaptureError):
        return error
    chain = list(_chain(error))
    line = _innermost(chain)
    if any(isinstance(e, (GuardOnDataDependentSymNode, DataDependentOutputException)) for e in chain):
        if any(_batch_norms(chain)):
            reason = "the running averages of a batch norm depend on the values of a counter, and would be lost"
            return CaptureError(f"{located(line)}{reason}: {OF_BATCH_NORM}")
        if name := next((name for e in chain for name in _numbers_of(e, numbers)), None):
            return of_number(line, name)
        return on_values(line)
    if isinstance(chain[0], DynamicOutputShapeException):
        reason = f"the shape of what {chain[0].func} computes depends on the values of a tensor"
        own = "use operations whose shapes follow from those of their operands"
        return CaptureError(f"{located(line)}{reason}, which are not known before training: {advice(line, own)}")
    if isinstance(chain[0], TypeError) and "unhashable type" in str(chain[0]) and "SymInt" in str(chain[0]):
        own = "compute what depends on it with arithmetic"
        reason = "the batch size is looked up in a dictionary or set, which would fix it"
        return CaptureError(f"{located(line)}{reason}: {advice(line, own)}")
    if isinstance(error, FixedLengthError):
        return _length_error(error, trace_again, batch)
    if isinstance(error, NoSamplesError) or "Constraints violated" in str(error) or "specialized" in str(error):
        return _batch_size_error(trace_again, batch.size, str(error) if isinstance(error, NoSamplesError) else "")
    reason = "the model cannot be traced without running it"
    if any(sign in str(e) for e in chain for sign in _UNTRACEABLE_STATE):
        own = (
            "read such values through .detach(), assign them outside of forward, and compute in the thread that calls "
            "forward"
        )
        what = (
            "it reads or changes a parameter or buffer through .data, computes in a thread of its own, or keeps a "
            "tensor of one call for the next"
        )
        return CaptureError(f"{located(line)}{reason}: {what}: {advice(line, own)}")
    written = next((match for e in chain if (match := _WRITTEN_CONSTANT.search(str(e)))), None)
    if written:
        own = "register it as a buffer (register_buffer), or compute a new tensor in place of writing into it"
        return CaptureError(
            f"{located(line)}the tensor attribute {written['name']!r} is written in place in forward, and it is no "
            f"buffer of the model: {advice(line, own)}"
        )
    if isinstance(chain[0], UncapturedHigherOrderOpError):
        own = "use operations on tensors, such as torch.where, in place of functions that take functions"
        return CaptureError(
            f"{located(line)}{reason}: torch cannot trace a branch or loop on values: {advice(line, own)}"
        )
    if torch.Generator.__name__ in str(chain[0]):
        return unreadable(line)
    if isinstance(chain[0], UnsupportedOperatorException):
        own = "use an operation on dense tensors"
        return CaptureError(f"{located(line)}{reason}: torch cannot trace {chain[0].func}: {advice(line, own)}")
    return CaptureError(f"{located(line)}{reason}: {_plain(chain[0])}")


def _numbers_of(error: BaseException, numbers: Mapping[sympy.Basic, str]) -> Iterator[str]:
    """The numbers of the batch that a condition depends on which could not be decided."""
    if isinstance(error, GuardOnDataDependentSymNode):
        yield from (numbers[symbol] for symbol in error.cond.free_symbols if symbol in numbers)


def of_number(line: Source | None, name: str) -> CaptureError:
    """For a number of the batch on which more depends than values."""
    own = (
        "use tensor operations such as torch.where, compute what depends on it before forward and pass that, or leave "
        f"{name!r} out of `dynamic` and compile for each value"
    )
    return CaptureError(
        f"{located(line)}control flow, a size, an index or a plain number depends on {name!r}, a number that changes "
        f"from step to step: {advice(line, own)}"
    )


def on_values(line: Source | None) -> CaptureError:
    """For a line of the model that asks what the values of a tensor are."""
    reason = "control flow or a size depends on the values of a tensor, which are not known before training"
    return CaptureError(f"{located(line)}{reason}: {advice(line, 'use tensor operations such as torch.where')}")


def unreadable(line: Source | None) -> CaptureError:
    """For an object that a line of the model reads and that is no tensor."""
    own = "make it outside of forward, or do without (random numbers follow from torch.manual_seed)"
    return CaptureError(
        f"{located(line)}the model reads an object that cannot be captured, such as a random generator: "
        f"{advice(line, own)}"
    )


_WRITTEN_CONSTANT = re.compile(r"Constant (?:model\.)?(?P<name>\S+) is mutated in the forward")
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


def _batch_norms(chain: list[BaseException]) -> Iterator[nn.Module]:
    """The batch norms in whose own code the errors were raised."""
    for error in chain:
        for frame, _ in walk_tb(error.__traceback__):
            if frame.f_code.co_filename == nn.modules.batchnorm.__file__:
                module = frame.f_locals.get("self")
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    yield module


def _innermost(chain: list[BaseException]) -> Source | None:
    return next((source for source in map(source_of_error, chain) if source is not None), None)


def _length_error(error: FixedLengthError, trace_again: Callable[[SizeWatch], Any], batch: Batch) -> CaptureError:
    name, dim = error.place
    watch = SizeWatch(batch.tensors[name].shape[dim], error.place, error.length)
    with contextlib.suppress(Exception):
        trace_again(watch)
    if watch.culprit is None:
        return CaptureError(
            f"dynamic: the model fixes {error.length}, dim {dim} of {name!r}: leave it out of `dynamic`"
        )
    return CaptureError(f"{located(watch.culprit)}{watch.finding}: {advice(watch.culprit, watch.own_advice)}")


def _batch_size_error(trace_again: Callable[[SizeWatch], Any], batch_size: int, otherwise: str) -> CaptureError:
    """Names the line that fixes the batch size, and what can be done: `otherwise`, besides mending it."""
    also = f"; {otherwise}" if otherwise else ""
    watch = SizeWatch(batch_size)
    with contextlib.suppress(Exception):
        trace_again(watch)
    if watch.culprit is None:
        return CaptureError(
            f"the model fixes the size of every input on dim 0, the batch size at {batch_size} too: derive sizes from "
            f"the inputs, as in x.shape[0]{also}"
        )
    return CaptureError(f"{located(watch.culprit)}{watch.finding}: {advice(watch.culprit, watch.own_advice)}{also}")


@dataclass
class SizeWatch:
    """Watches a forward, line by line, for the first one that holds for some values of a size only: of the number of
    samples, or of that at a `place`, called `name`, which is `size` in the example.

    `culprit` is that line, `finding` says what it demands of the size, and `own_advice` what its author can do.
    """

    size: int
    place: Place | None = None
    name: str = "B"
    culprit: Source | None = None
    finding: str = ""
    own_advice: str = ""

    @contextlib.contextmanager
    def watching(self, sizes: Mapping[Place, torch.SymInt]) -> Iterator[None]:
        """Watches what happens to a symbolic size inside the `with` block: the first that may be the batch size, or the
        one at the place."""
        samples = (s for (_, dim), s in sizes.items() if dim == 0 and s.node.hint == max(self.size, 2))
        size = next(samples, None) if self.place is None else sizes.get(self.place)
        if size is None:
            yield
            return
        symbol, environment = size.node.expr, size.node.shape_env
        last: tuple[str, int] | None = None
        iterated: tuple[str, int] | None = None

        def check(called: str = "") -> None:
            if self.culprit is None and last is not None:
                demand = _demand(symbol, environment, self._called, called, iterated == last)
                if demand:
                    self.culprit = source_of_line(*last)
                    self.finding, self.own_advice = demand

        def on_call(frame: types.FrameType, event: str, function: Any) -> None:
            if event == "c_return" and is_user_file(frame.f_code.co_filename):
                check(_name_of_function(function))

        def on_event(frame: types.FrameType, event: str, _: Any) -> Any:
            nonlocal last, iterated
            if not is_user_file(frame.f_code.co_filename):
                iterated = last if frame.f_code is torch.Tensor.__iter__.__code__ else iterated
                return None
            if event in ("line", "return"):
                check()
            if event == "line":
                last = frame.f_code.co_filename, frame.f_lineno
            if event == "return":
                last = _user_line_above(frame) or last
            return on_event

        before = sys.gettrace(), sys.getprofile()
        collects = gc.isenabled()
        gc.disable()  # what it calls back would be taken for lines of the model
        sys.settrace(on_event)
        sys.setprofile(on_call)
        try:
            yield
        finally:
            sys.setprofile(before[1])
            sys.settrace(before[0])
            if collects:
                gc.enable()
            check()

    @property
    def _called(self) -> tuple[sympy.Symbol, str, str]:
        """The size, a value of it, and its values, in words."""
        if self.place is None:
            return BATCH, "the batch size", "batch sizes B"
        return sympy.Symbol(self.name), f"the size {self.name}", f"sizes {self.name}"


def _user_line_above(frame: types.FrameType) -> tuple[str, int] | None:
    above = frame.f_back
    while above is not None and not is_user_file(above.f_code.co_filename):
        above = above.f_back
    return None if above is None else (above.f_code.co_filename, above.f_lineno)


def _name_of_function(function: Any) -> str:
    """A function of a module written in C, as a person calls it; empty for a method."""
    name, owner = function.__name__, getattr(function, "__self__", None)
    if getattr(torch, name, None) is function:
        return f"torch.{name}"
    return f"{owner.__name__}.{name}".removeprefix("builtins.") if isinstance(owner, types.ModuleType) else ""


def _demand(
    symbol: sympy.Symbol, environment: Any, words: tuple[sympy.Symbol, str, str], called: str, iterates: bool
) -> tuple[str, str] | None:
    """What is demanded of a size, perhaps by a function that was called last or by a loop over a tensor, and what to do
    about it."""
    named, one, several = words
    size = environment.replace(symbol)
    if size.is_number and iterates:
        what = "samples of the batch" if named == BATCH else "elements of a dimension"
        return (
            f"a loop over the {what}, one after the other, fixes {one} at {size}",
            "compute on all samples at once, or on each with torch.vmap",
        )
    if size.is_number and called:
        return (
            f"{called} takes a plain number and fixes {one} at {size}",
            "compute it with arithmetic (also ** and math.sqrt), or from a tensor such as torch.arange(n)",
        )
    if size.is_number:
        return f"the model fixes {one} at {size}", _DERIVE
    for guard in environment.guards:
        condition = environment.replace(guard.expr)
        if condition.free_symbols == {size} and not is_range(condition.subs(size, BATCH)):
            if condition.atoms(sympy.Function) and named == BATCH:
                return _CUT
            return f"the model works only for {several} with {condition.subs(size, named)}", _DERIVE
    return None


_DERIVE = "derive sizes from the inputs, as in x.shape[0] without int() or float(), or let -1 stand for the batch"
_CUT = (
    "the model works only for batch sizes that divide: cutting the dimension of samples into parts is not supported",
    "give the parts as inputs of their own, or as another dimension of the inputs",
)


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
