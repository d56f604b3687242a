"""What a model returns besides its loss, by names: fields, keys, positions, or all of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from galvatron.errors import CaptureError, did_you_mean

WHOLE = "output"
"""The name of what a model returns where that is one tensor."""

Outputs = bool | Sequence[str]
"""The outputs that a program is to give, by name: a field of a mapping, a dataclass or a named tuple; a position of a
tuple or list, as in `"0"`; inside of one another with a dot, as in `"hidden_states.3"`. True is a tensor that is the
whole output."""


def names_of(wanted: Outputs) -> tuple[str, ...]:
    """The names of the outputs that are wanted, each once."""
    if isinstance(wanted, bool):
        return (WHOLE,) if wanted else ()
    return tuple(dict.fromkeys(wanted))


def chosen(output: Any, wanted: Outputs) -> dict[str, torch.Tensor]:
    """The tensors that are wanted of what a model has returned, by their names, in the order in which they are wanted.

    Raises:
        CaptureError: there is no such output, there are several, or it is no tensor.
    """
    if wanted is False:
        return {}
    if wanted is True:
        if isinstance(output, torch.Tensor):
            return {WHOLE: output}
        found = ", ".join(repr(name) for name, _ in _tensors(output, ""))
        raise CaptureError(
            f"outputs=True is for a model that returns one tensor, but it returned a {type(output).__name__}: "
            + (f"name what is wanted of {found}" if found else "no output of it is a tensor")
        )
    return {name: _one(output, name) for name in names_of(wanted)}


def _one(output: Any, name: str) -> torch.Tensor:
    found = list(_tensors(output, ""))
    tensors = dict(found)
    if [each for each, _ in found].count(name) > 1:
        raise CaptureError(f"the model returned several tensors with the name {name!r}, since a field of it has a dot")
    if name in tensors:
        return tensors[name]
    known = f"{did_you_mean(name, tensors)}" if tensors else "it returned no tensors by name"
    if isinstance(output, torch.Tensor):
        known = "it returned one tensor: ask for that with outputs=True"
    raise CaptureError(f"the model returned no tensor {name!r} to give as an output; {known}")


def _tensors(value: Any, name: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor inside what a model has returned, by its name."""
    for key, item in _items(value):
        path = f"{name}.{key}" if name else key
        if isinstance(item, torch.Tensor):
            yield path, item
        else:
            yield from _tensors(item, path)


def _items(value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return [(key, item) for key, item in value.items() if isinstance(key, str)]
    if isinstance(value, tuple) and (names := getattr(value, "_fields", None)):
        return list(zip(names, value, strict=True))
    if isinstance(value, (tuple, list)):
        return [(str(position), item) for position, item in enumerate(value)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    return []
