"""Tensors in the place of a model's own while it is traced, which reads no values: of other types, or elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor, nn


def device_of(model: nn.Module) -> torch.device:
    """Where a model is traced: where its first parameter or buffer is, but `meta` where any of it is there."""
    devices = [tensor.device for tensor in chain(model.parameters(), model.buffers())]
    return next((device for device in devices if device.type == "meta"), devices[0] if devices else torch.device("cpu"))


@contextmanager
def standing_in(model: nn.Module, stand_in: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """Inside the `with` block others are in the place of the parameters and buffers of a model; tied ones stay tied.

    Args:
        stand_in: the other of a tensor, with any `requires_grad`; None leaves it where it is.
    """
    own: list[tuple[nn.Module, str, Tensor]] = []
    others: dict[int, Tensor | None] = {}
    try:
        for module in model.modules():
            for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
                if tensor is None:
                    continue
                if id(tensor) not in others:
                    other = stand_in(tensor)
                    if other is not None and isinstance(tensor, nn.Parameter):
                        other = nn.Parameter(other, tensor.requires_grad)
                    others[id(tensor)] = other
                if (other := others[id(tensor)]) is not None:
                    own.append((module, name, tensor))
                    setattr(module, name, other)
        yield
    finally:
        for module, name, tensor in own:
            setattr(module, name, tensor)


@contextmanager
def all_on_meta(model: nn.Module) -> Iterator[None]:
    """Inside the `with` block all of a model is on `meta` of which some is: adapters may be real around a base that has
    no values yet."""
    if device_of(model).type != "meta":
        yield
        return
    with standing_in(model, lambda tensor: None if tensor.is_meta else tensor.detach().to("meta")):
        yield
