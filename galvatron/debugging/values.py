"""Random numbers for what a graph is given."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence, Set

import torch
from torch import Tensor

from galvatron.ir.graph import Graph, Value
from galvatron.ir.index_bounds import Read, bounds, reads
from galvatron.ir.types import TORCH_DTYPE_NAMES, evaluate

_FEW = 2
"""Whole numbers of which nothing is known are below this."""

_ONE = 3
"""A whole number that is by itself, as far as its bound allows: a count, which should be neither 0 nor 1."""


def random_values(graph: Graph, batch: int, scale: float, seed: int) -> dict[str, Tensor]:
    """A tensor for every input and piece of state: floating numbers of a scale, whole ones that may be looked up
    wherever that is done, with the first, the last and all that an op treats in another way among them, such as labels
    that are ignored, and masks that hide some but never the first position.

    Args:
        batch: the number of samples.
        scale: the standard deviation of floating numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    most = bounds(graph, batch)
    of: dict[str, list[Read]] = defaultdict(list)
    for read in reads(graph):
        of[read.origin].append(read)
    return {
        value.name: _random(value, batch, scale, most.get(value.name), of[value.name], generator)
        for value in (*graph.inputs, *graph.state)
    }


def _random(
    value: Value, batch: int, scale: float, bound: int | None, read: Sequence[Read], generator: torch.Generator
) -> Tensor:
    shape = [evaluate(size, batch) for size in value.type.shape]
    dtype = getattr(torch, TORCH_DTYPE_NAMES[value.type.dtype])
    if any(one.signs for one in read):
        return (torch.randint(0, 2, shape, generator=generator) * 2 - 1).to(dtype)
    if dtype == torch.bool:
        mask = torch.rand(shape, generator=generator) < 0.7
        if shape:
            mask[..., :1] = True
        return mask
    special = {number for one in read for number in one.special if all(other.takes(number, batch) for other in read)}
    if bound is None and (value.type.is_floating or dtype.is_complex):
        return _with(torch.randn(shape, dtype=dtype, generator=generator) * scale, special, generator)
    if not shape:
        return torch.tensor(_ONE if bound is None else min(_ONE, bound - 1), dtype=dtype)
    numbers = torch.randint(0, _FEW if bound is None else bound, shape, generator=generator)
    ends = set() if bound is None else {0, bound - 1}
    return _with(_with(numbers, ends - special, generator), special, generator).to(dtype)


def _with(numbers: Tensor, special: Set[float], generator: torch.Generator) -> Tensor:
    """Numbers of which some, a fifth or at least one, are special ones; not more than half."""
    found = numbers.flatten()
    order = torch.randperm(found.numel(), generator=generator)[: found.numel() // 2]
    each = max(1, found.numel() // (5 * max(1, len(special))))
    for place, number in enumerate(sorted(special)):
        found[order[place * each : (place + 1) * each]] = number
    return found.view(numbers.shape)
