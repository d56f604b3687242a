"""While a model is traced: every op remembers its line, and gradients of the user's own making are refused."""

from __future__ import annotations

import builtins
import contextlib
import math
import sys
import traceback
import types
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch._decomp import decomposition_table
from torch.fx.proxy import TracerBase
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
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
    the forward of a `torch.autograd.Function` as if its backward did not exist. Of functions of Python that must return
    a plain number, `len` and `math.sqrt` give the symbolic one for the size of a batch.
    """
    with contextlib.ExitStack() as patches:
        if hasattr(TracerBase, "_filter_traceback_frames"):
            patches.enter_context(mock.patch.object(TracerBase, "_filter_traceback_frames", _innermost_user_frame))
        patches.enter_context(mock.patch.object(torch.autograd.Function, "apply", classmethod(_apply)))
        patches.enter_context(mock.patch.object(torch.Tensor, "register_hook", _register_hook))
        patches.enter_context(mock.patch.object(builtins, "len", _length))
        patches.enter_context(mock.patch.object(math, "sqrt", _root))
        patches.enter_context(mock.patch.dict(decomposition_table))
        for op in _MISREAD_LOSSES:
            decomposition_table.pop(op, None)
        yield


class OnlyRegisteredAreTrained(TorchFunctionMode):
    """Refuses gradients of tensors that the model does not own: torch would detach them and take them for constants.

    While torch traces, the model's own parameters are fake; a real tensor comes from a closure, a global, a plain list
    or an attribute that is no parameter.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if torch.is_grad_enabled() and any(t.requires_grad for t in _tensors(result)):
            for tensor in _tensors((args, kwargs)):
                if tensor.requires_grad and type(tensor) in (torch.Tensor, torch.nn.Parameter):
                    raise CaptureError(
                        f"{here()}a {'parameter' if isinstance(tensor, torch.nn.Parameter) else 'tensor'} of shape "
                        f"{tuple(tensor.shape)} that requires a gradient is not among the model's parameters, so it "
                        "would not be trained: make it a parameter of the model, or what owns it (such as a loss) a "
                        "submodule of the model; if it is not to be trained, use tensor.detach()"
                    )
        return result


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


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


_plain_length, _plain_root = len, math.sqrt


def _length(value: Any) -> Any:
    sized = isinstance(value, torch.Tensor) and value.dim() and isinstance(value.shape[0], torch.SymInt)
    return value.shape[0] if sized else _plain_length(value)


def _root(value: Any) -> Any:
    return torch.sym_sqrt(value) if isinstance(value, (torch.SymInt, torch.SymFloat)) else _plain_root(value)


def here() -> str:
    """The head of an error message about the user's line that is running."""
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None and not is_user_file(frame.f_code.co_filename):
        frame = frame.f_back
    return located(source_of_line(frame.f_code.co_filename, frame.f_lineno)) if frame else ""
