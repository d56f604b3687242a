"""Random numbers for what a graph is given."""

from __future__ import annotations

import torch
from torch import Tensor

from galvatron.ir.graph import Graph, Value
from galvatron.ir.index_bounds import bounds, origins, places
from galvatron.ir.types import TORCH_DTYPE_NAMES, evaluate

_FEW = 2
"""Whole numbers of which nothing is known are below this."""

_ONE = 3
"""A whole number that is by itself, as far as its bound allows: a count, which should be neither 0 nor 1."""


def random_values(graph: Graph, batch: int, scale: float, seed: int) -> dict[str, Tensor]:
    """A tensor for every input and piece of state: floating numbers of a scale, whole ones that may be looked up
    wherever that is done, some of the labels ignored, and masks that hide some but never the first position.

    Args:
        batch: the number of samples.
        scale: the standard deviation of floating numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    most, ignored = bounds(graph, batch), _ignored(graph)
    return {
        value.name: _random(value, batch, scale, most.get(value.name), ignored.get(value.name), generator)
        for value in (*graph.inputs, *graph.state)
    }


def _random(
    value: Value, batch: int, scale: float, bound: int | None, ignored: int | None, generator: torch.Generator
) -> Tensor:
    shape = [evaluate(size, batch) for size in value.type.shape]
    dtype = getattr(torch, TORCH_DTYPE_NAMES[value.type.dtype])
    if value.type.is_floating or dtype.is_complex:
        return torch.randn(shape, dtype=dtype, generator=generator) * scale
    if dtype == torch.bool:
        mask = torch.rand(shape, generator=generator) < 0.7
        if shape:
            mask[..., :1] = True
        return mask
    if not shape:
        return torch.tensor(_ONE if bound is None else min(_ONE, bound - 1), dtype=dtype)
    numbers = torch.randint(0, _FEW if bound is None else bound, shape, dtype=dtype, generator=generator)
    if ignored is not None:
        numbers[torch.rand(shape, generator=generator) < 0.2] = ignored
    return numbers


def _ignored(graph: Graph) -> dict[str, int]:
    """Of what is given as labels, those that count for nothing; none of what is looked up elsewhere as well."""
    ignored: dict[str, int] = {}
    looked_up: set[str] = set()
    origin = origins(graph)
    for op in graph.ops:
        label = op.get("ignore_index")
        for name in (origin[name] for name, _ in places(op, graph.types) if name in origin):
            if isinstance(label, int):
                ignored[name] = label
            else:
                looked_up.add(name)
    return {name: label for name, label in ignored.items() if name not in looked_up}
