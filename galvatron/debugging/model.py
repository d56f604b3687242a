"""The model itself, called on a batch as a program would run it: loss and gradients."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from galvatron.debugging.running import gradients_by
from galvatron.ir.capture import LossFunction, loss_of
from galvatron.ir.graph import Op
from galvatron.ir.random import draws_as_a_whole, is_random


def first_draw(ops: Iterable[Op]) -> Op | None:
    """The first op that draws random numbers, so that two runs are nothing to compare; None where there is none."""
    return next((op for op in ops if is_random(op) or draws_as_a_whole(op)), None)


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by all of their names."""
    return dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))


def loss_of_model(model: nn.Module, inputs: Mapping[str, Any], loss_fn: LossFunction | None) -> Tensor:
    """The loss of a batch, of which forward gets copies, since it may write into tensors.

    Raises:
        GalvatronError: there is no loss. Else whatever the model raises.
    """
    own = {name: value.detach().clone() if isinstance(value, Tensor) else value for name, value in inputs.items()}
    return loss_of(model(**own), own, loss_fn)


def gradients_of(loss: Tensor, trained: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The gradients of a loss, by name; zero where it does not depend on a tensor."""
    found = gradients_by(trained, [loss]) if loss.requires_grad else {}
    return {name: found[name] if name in found else torch.zeros_like(tensor) for name, tensor in trained.items()}
