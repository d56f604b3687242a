"""The loss of a training computation: what the model returns as such, or what a function of the user's makes of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from galvatron.errors import CaptureError

LossFunction = Callable[[Any, Mapping[str, Any]], torch.Tensor]
"""`loss_fn(output, batch) -> scalar`: `output` is what the model returns, `batch` the inputs by forward name."""


def loss_of(output: Any, inputs: Mapping[str, Any], loss_fn: LossFunction | None) -> torch.Tensor:
    """The loss of what a model returns for some inputs.

    Raises:
        CaptureError: there is none, or it is no floating-point scalar.
    """
    if loss_fn is None:
        return _checked_loss(_own_loss(output))
    try:
        return _checked_loss(loss_fn(output, inputs))
    except KeyError as error:
        raise CaptureError(f"loss_fn asks the batch for {error}; it has {', '.join(map(repr, inputs))}") from error


def _own_loss(output: Any) -> Any:
    if isinstance(output, torch.Tensor) and output.dim() == 0:
        return output
    loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if loss is None:
        raise CaptureError(
            f"the model returned no loss but {_described(output)}: "
            "pass loss_fn(output, batch) -> scalar, or give the model its labels"
        )
    return loss


def _checked_loss(loss: Any) -> torch.Tensor:
    if not isinstance(loss, torch.Tensor) or loss.dim() != 0 or not loss.is_floating_point():
        raise CaptureError(f"the loss is {_described(loss)}: it must be a floating-point tensor without dimensions")
    return loss


def _described(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor with {value.dim()} dimensions"
    return f"a {type(value).__name__}"
