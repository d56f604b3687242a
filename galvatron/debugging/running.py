"""A flat graph run on one device, with every value on the way and the gradient of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from galvatron.ir.graph import Graph
from galvatron.ir.interpreter import run_graph
from galvatron.ir.random import draws_as_a_whole, is_random

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Trace:
    """What a graph computes: all values by name, and the gradients of the loss by those that it depends on."""

    values: Tensors
    gradients: Tensors


def traced(graph: Graph, given: Mapping[str, Tensor], batch: int, *, rounded: bool = False) -> Trace:
    """Runs a graph forward and backward; its first output is the loss. Draws at equal lines of a model are equal.

    Args:
        given: a tensor for every input and piece of state.
        rounded: whether each floating result is made another one in its last bit, which shows what rounding may do.
    """
    leaves = {name: tensor.detach().clone() for name, tensor in given.items()}
    for tensor in leaves.values():
        tensor.requires_grad_(tensor.is_floating_point() or tensor.is_complex())
    names = tuple(dict.fromkeys((*graph.outputs, *(value.name for op in graph.ops for value in op.results))))
    every = run_graph(replace(graph, outputs=names), leaves, batch=batch, callers=_callers(graph, rounded))
    values = {**leaves, **{name: tensor for name, tensor in every.items() if isinstance(tensor, Tensor)}}
    loss = values[graph.outputs[0]]
    flowing = [name for name, tensor in values.items() if tensor.requires_grad]
    found: list[Tensor | None] = [None] * len(flowing)
    if loss.requires_grad:
        found = list(torch.autograd.grad(loss.sum(), [values[name] for name in flowing], allow_unused=True))
    gradients = {name: gradient for name, gradient in zip(flowing, found, strict=True) if gradient is not None}
    return Trace({name: tensor.detach() for name, tensor in values.items()}, gradients)


def _callers(graph: Graph, rounded: bool) -> dict[int, Callable[..., Any]]:
    """By number, ops that are not simply called: those that draw have a seed of their own, which follows from their
    line."""
    if rounded:
        seeded = _callers(graph, False)
        return {i: partial(_rounded, seeded.get(i, _called)) for i in range(len(graph.ops))}
    lines: Counter[object] = Counter()
    callers: dict[int, Callable[..., Any]] = {}
    for index, op in enumerate(graph.ops):
        if is_random(op) or draws_as_a_whole(op):
            line = op.source and (op.source.file, op.source.line)
            lines[line] += 1
            callers[index] = partial(_seeded, hash((line, lines[line])) % 2**32)
    return callers


def _seeded(seed: int, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return function(*args, **kwargs)


def _called(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return function(*args, **kwargs)


def _rounded(caller: Callable[..., Any], function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Results of which each floating number is a little more or less than it was."""
    results = caller(function, *args, **kwargs)
    return type(results)(map(_last_bit, results)) if isinstance(results, (tuple, list)) else _last_bit(results)


def _last_bit(result: Any) -> Any:
    if not isinstance(result, Tensor) or not result.is_floating_point():
        return result
    signs = 1 - 2 * (torch.arange(result.numel(), dtype=result.dtype) % 2).view(result.shape)
    return result * (1 + torch.finfo(result.dtype).eps * signs)
