"""Computing in float64 throughout, so that rounding hides no mistake."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode


def unseen(function: Any) -> Any:
    """A function that is no line of a model to those who look for one in a traceback."""
    function.__code__ = function.__code__.replace(co_filename="<float64>")
    return function


class Doubles(TorchFunctionMode):
    """Computes in float64 what a model asks to compute in float32.

    Libraries cast norms, rotary tables and losses to float32 whatever the type of the model is. Operators, as graphs of
    what was traced call them, are left as they are.
    """

    @unseen
    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if isinstance(func, torch._ops.OpOverload):
            return func(*args, **(kwargs or {}))
        if func is torch.Tensor.float:
            func = torch.Tensor.double
        args = tuple(torch.float64 if a is torch.float32 else a for a in args)
        kwargs = {k: torch.float64 if v is torch.float32 else v for k, v in (kwargs or {}).items()}
        return func(*args, **kwargs)


def precise(model: nn.Module) -> AbstractContextManager[Any]:
    """What lets a float64 model compute in float64 throughout."""
    return Doubles() if next(model.parameters()).dtype is torch.float64 else nullcontext()
