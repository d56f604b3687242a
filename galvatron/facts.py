"""What ranks tell each other of their arguments, in words that are equal where the arguments are."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from inspect import getattr_static
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

_SMALL = 1024
"""Elements of a tensor that is compared whole; so are the buffers of whose values a program may be made
(`galvatron.ir.capture.constants`)."""

_SAMPLE = 32
"""Elements of a large tensor that stand for it: tensors that were made or read differently differ everywhere."""


def described(batch: Any) -> str:
    """The names, shapes and types of a batch, in words, with the values of its numbers."""
    if not isinstance(batch, Mapping):
        batch = dict(enumerate(batch)) if isinstance(batch, (tuple, list)) else {"": batch}
    return ", ".join(
        f"{name}: {str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
        if isinstance(value, Tensor)
        else f"{name}: {repr(value) if isinstance(value, (int, float)) else type(value).__name__}"
        for name, value in batch.items()
    )


def facts_of_model(model: nn.Module) -> dict[str, str]:
    """What must be equal of the models of all ranks. Of large weights a few values are compared: unequal ones differ
    everywhere. Small tensors may have been made by hand, and the program may be made of their values."""
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    structure = [(name, tuple(t.shape), str(t.dtype), t.requires_grad, t.is_meta) for name, t in tensors]
    values = digest_of_values(tensor for _, tensor in tensors)
    modes = [module.training for module in model.modules()]
    return {
        "the model": f"{type(model).__name__} with {len(tensors)} tensors, digest {digest_of(repr(structure))}",
        "the mode of the model": f"{sum(modes)} of {len(modes)} modules in training mode",
        "the values of the model (seed every rank alike before building it)": f"digest {values}",
    }


def digest_of_values(tensors: Iterable[Tensor]) -> str:
    """Of all values of small tensors and a few of each other; those without values count for nothing."""
    found = hashlib.blake2b(digest_size=6)
    for tensor in tensors:
        if isinstance(tensor.data, FakeTensor) or tensor.is_meta or tensor.layout is not torch.strided:
            continue
        row, most = tensor.detach(), _SMALL
        if row.numel() > most:
            most = _SAMPLE
            while row.dim() > 1:
                row = row[-1]
        stored = row.reshape(-1)[:most].cpu().resolve_conj().resolve_neg().contiguous()
        found.update(stored.view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def digest_of(text: str) -> str:
    """A text that is too long to be shown, in a word."""
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def content_of(batch: Mapping[str, object]) -> int:
    """A checksum of a batch's integers, such as tokens and labels."""
    total = 0
    for value in batch.values():
        if isinstance(value, Tensor) and not value.is_floating_point() and not value.is_complex() and value.numel():
            flat = value.reshape(-1).to(torch.int64)
            places = torch.arange(1, len(flat) + 1, device=flat.device)
            total = (total * 31 + int((flat * places).sum())) % (1 << 61)
    return total


def oddity(value: Tensor) -> str:
    """What makes a tensor another thing than its elements in order, in words; empty for a plain one.

    A fake tensor is plain: it has types, as one on the meta device.
    """
    kind = type(value)
    if value.is_nested:
        return "a nested tensor"
    if not issubclass(kind, (FakeTensor, nn.Parameter)) and any(
        getattr_static(kind, name) is not getattr_static(Tensor, name)
        for name in ("__torch_function__", "__torch_dispatch__")
    ):
        return f"a {kind.__name__}"
    return "" if value.layout is torch.strided else f"a {str(value.layout).removeprefix('torch.')} tensor"
