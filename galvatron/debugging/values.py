"""Random numbers for what a graph is given."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from galvatron.ir.graph import Graph, Op, Ref, Value
from galvatron.ir.types import TORCH_DTYPE_NAMES, evaluate

_INDEX_OF = {"embedding": ("indices", "weight", 0), "cross_entropy_loss": ("target", "self", 1)}
"""Operators that look an operand up in another one, and along which dimension of that."""

_SAME_INDICES = {
    *("reshape", "expand", "slice", "select", "unsqueeze", "squeeze", "permute", "transpose", "clone", "_to_copy"),
    *("contiguous", "view", "flatten"),
}
"""Operators that only move whole numbers, or some of them."""

_FEW = 2
"""Whole numbers of which nothing is known are below this."""


def random_values(graph: Graph, batch: int, scale: float, seed: int) -> dict[str, Tensor]:
    """A tensor for every input and piece of state: floating numbers of a scale, whole ones that may be looked up
    wherever that is done, some of the labels ignored, and masks that hide some but never the first position.

    Args:
        batch: the number of samples.
        scale: the standard deviation of floating numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    bounds, ignored = _bounds(graph)
    return {
        value.name: _random(value, batch, scale, bounds.get(value.name, _FEW), ignored.get(value.name), generator)
        for value in (*graph.inputs, *graph.state)
    }


def _random(
    value: Value, batch: int, scale: float, bound: int, ignored: int | None, generator: torch.Generator
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
        return torch.tensor(3, dtype=dtype)
    numbers = torch.randint(0, bound, shape, dtype=dtype, generator=generator)
    if ignored is not None:
        numbers[torch.rand(shape, generator=generator) < 0.2] = ignored
    return numbers


def _bounds(graph: Graph) -> tuple[dict[str, int], dict[str, int]]:
    """For whole numbers that are given: below what they must be, and which are the labels that count for nothing."""
    bounds: dict[str, int] = {}
    ignored: dict[str, int] = {}
    for op in graph.ops:
        if op.name not in _INDEX_OF or op.function is not None:
            continue
        index, table, dim = _INDEX_OF[op.name]
        rows = graph.types[_name(op, table)].shape[dim]
        for name in _given(graph, _name(op, index)):
            if isinstance(rows, int):
                bounds[name] = min(rows, bounds.get(name, rows))
            if isinstance(label := op.get("ignore_index"), int):
                ignored[name] = label
    looked_up = {
        name for op in graph.ops if op.name == "embedding" for name in _given(graph, _name(op, "indices"))
    }  # of these none is ignored
    return bounds, {name: label for name, label in ignored.items() if name not in looked_up}


def _name(op: Op, parameter: str) -> str:
    arg = op[parameter]
    assert isinstance(arg, Ref)
    return arg.name


def _given(graph: Graph, name: str) -> Iterator[str]:
    """What a value is made of by moving numbers alone."""
    op = graph.producers.get(name)
    if op is None:
        yield name
    elif op.name in _SAME_INDICES:
        yield from _given(graph, op.operands[0])
