"""While a model is traced: every op remembers its line, and gradients of the user's own making are refused."""

from __future__ import annotations

import contextlib
import sys
import traceback
import types
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch._decomp import decomposition_table
from torch.fx.proxy import TracerBase
from torch.utils.checkpoint import CheckpointFunction

from galvatron.errors import CaptureError
from galvatron.ir.capture.sources import is_user_file, located, source_of_line

_aten = torch.ops.aten
_MISREAD_LOSSES = (_aten.nll_loss.default, _aten.margin_ranking_loss.default, _aten.hinge_embedding_loss.default)
"""Losses whose Python references take `reduction` as text: under a symbolic batch size torch calls them with the op's
number, and an unreduced loss gets the type of a reduced one (seen in torch 2.13)."""


@contextlib.contextmanager
def careful_tracing() -> Iterator[None]:
    """Traces inside the `with` block keep the user's line of each op and refuse what would silently be lost.

    Left to itself torch records only frames of functions called `forward`, which misses losses and helpers, and traces
    the forward of a `torch.autograd.Function` as if its backward did not exist.
    """
    with contextlib.ExitStack() as patches:
        if hasattr(TracerBase, "_filter_traceback_frames"):
            patches.enter_context(mock.patch.object(TracerBase, "_filter_traceback_frames", _innermost_user_frame))
        patches.enter_context(mock.patch.object(torch.autograd.Function, "apply", classmethod(_apply)))
        patches.enter_context(mock.patch.object(torch.Tensor, "register_hook", _register_hook))
        patches.enter_context(mock.patch.dict(decomposition_table))
        for op in _MISREAD_LOSSES:
            decomposition_table.pop(op, None)
        yield


def _innermost_user_frame(_: TracerBase, frames: traceback.StackSummary) -> traceback.StackSummary:
    innermost: list[traceback.FrameSummary] = []
    for frame in reversed(frames):
        if frame.filename.endswith("galvatron/ir/capture/export.py"):
            break
        if is_user_file(frame.filename):
            innermost = [frame]
            break
    return traceback.StackSummary.from_list(innermost)


_apply_function = torch.autograd.Function.__dict__["apply"].__func__


def _apply(cls: type[torch.autograd.Function], *args: Any, **kwargs: Any) -> Any:
    if cls is CheckpointFunction:
        function, _preserve_random_state, *inputs = args
        return function(*inputs)
    if cls.__module__.partition(".")[0] == "torch":
        return _apply_function(cls, *args, **kwargs)
    raise CaptureError(
        f"{here()}the autograd function {cls.__name__} has a backward of its own, which would be lost: "
        "write it with operations that torch differentiates"
    )


def _register_hook(_: torch.Tensor, hook: Any) -> Any:
    raise CaptureError(f"{here()}a hook on a gradient would be lost: write it with operations of the forward")


def here() -> str:
    """The head of an error message about the user's line that is running."""
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None and not is_user_file(frame.f_code.co_filename):
        frame = frame.f_back
    return located(source_of_line(frame.f_code.co_filename, frame.f_lineno)) if frame else ""
