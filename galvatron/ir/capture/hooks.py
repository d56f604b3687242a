"""Hooks that change gradients: a program computes those of the forward, and would lose them."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from torch.nn.modules import module as every_module

from galvatron.errors import CaptureError
from galvatron.ir.capture.refusals import refuse_first


def check_hooks(model: nn.Module) -> None:
    """Refuses a model with hooks on its backward. Hooks on its forward are part of that.

    Raises:
        CaptureError: names the parameter or module that has one.
    """
    refuse_first(
        CaptureError(
            f"{who} has a hook on its backward, which would be lost: remove it (what registered it returned a handle "
            "with .remove()), and write what it does into the forward or the optimizer"
        )
        for who in _hooked(model)
    )


def _hooked(model: nn.Module) -> Iterator[str]:
    """What of a model has hooks on its backward, in words."""
    if every_module._global_backward_hooks or every_module._global_backward_pre_hooks:
        yield "every module"
    for name, module in model.named_modules():
        if module._backward_hooks or module._backward_pre_hooks:
            yield f"module {name!r}" if name else "the model"
    for name, parameter in model.named_parameters():
        if parameter._backward_hooks or parameter._post_accumulate_grad_hooks:
            yield f"parameter {name!r}"
