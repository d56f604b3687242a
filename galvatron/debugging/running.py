"""A flat graph run on one device, with every value on the way and the gradient of each."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from galvatron.errors import GalvatronError
from galvatron.ir.graph import Graph
from galvatron.ir.interpreter import run_graph
from galvatron.ir.random import draws_as_a_whole, is_random

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Trace:
    """What a graph computes: all values by name, and the gradients of the loss by those that it depends on."""

    values: Tensors
    gradients: Tensors


@contextmanager
def runnable() -> Iterator[None]:
    """
    Raises:
        GalvatronError: what is run in the block cannot take the numbers that it is given.
    """
    try:
        yield
    except (RuntimeError, IndexError, ValueError, TypeError) as error:
        raise GalvatronError(f"it cannot be run on random numbers: {error}") from error


def traced(
    graph: Graph, given: Mapping[str, Tensor], batch: int, trained: Collection[str], *, rounded: bool = False
) -> Trace:
    """Runs a graph forward and backward; its first output is the loss. Draws at equal lines of a model are equal.

    Args:
        given: a tensor for every input and piece of state.
        trained: the state that has a gradient; where there is none, inputs have one.
        rounded: see `callers_of`.
    """
    leaves = {name: tensor.detach().clone() for name, tensor in given.items()}
    own = {value.name for value in graph.state}.intersection(trained) or {value.name for value in graph.inputs}
    for name in own:
        leaves[name].requires_grad_(leaves[name].is_floating_point() or leaves[name].is_complex())
    with runnable():
        values = every_value(graph, leaves, batch, callers_of(graph, rounded=rounded))
    loss = values[graph.outputs[0]]
    with runnable():
        gradients = gradients_by(values, [loss.sum()]) if loss.requires_grad else {}
    return Trace({name: tensor.detach() for name, tensor in values.items()}, gradients)


def gradients_by(
    values: Mapping[str, Tensor], ends: Sequence[Tensor], given: Sequence[Tensor] | None = None
) -> Tensors:
    """The gradients of some results by the values that they depend on; `given` are those of the results themselves."""
    flowing = {name: tensor for name, tensor in values.items() if tensor.requires_grad}
    found = torch.autograd.grad(ends, list(flowing.values()), given, allow_unused=True)
    return {name: gradient for name, gradient in zip(flowing, found, strict=True) if gradient is not None}


def every_value(
    graph: Graph, given: Tensors, batch: int, callers: Mapping[int, Callable[..., Any]] | None = None
) -> Tensors:
    """All values of a graph, by name: what it is given and what its ops make."""
    names = tuple(dict.fromkeys((*graph.outputs, *(value.name for op in graph.ops for value in op.results))))
    found = run_graph(replace(graph, outputs=names), given, batch=batch, callers=callers)
    return {**given, **{name: tensor for name, tensor in found.items() if isinstance(tensor, Tensor)}}


def callers_of(graph: Graph, *, rounded: bool) -> dict[int, Callable[..., Any]]:
    """By number, ops that are not simply called: those that draw have a seed of their own, which follows from their
    line.

    Args:
        rounded: whether each floating result is made another one in its last bit, which shows what rounding may do.
    """
    if rounded:
        seeded = callers_of(graph, rounded=False)
        return {i: partial(_rounded, seeded.get(i, _called)) for i in range(len(graph.ops))}
    lines: Counter[object] = Counter()
    callers: dict[int, Callable[..., Any]] = {}
    for index, op in enumerate(graph.ops):
        if is_random(op) or draws_as_a_whole(op):
            line = op.source and (op.source.file, op.source.line)
            lines[line] += 1
            callers[index] = partial(_seeded, zlib.crc32(repr((line, lines[line])).encode()))
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
    signs = 1 - 2 * (torch.arange(result.numel(), device=result.device) % 2).view(result.shape)
    other = result * (1 + torch.finfo(result.dtype).eps * signs.to(result.dtype))
    return torch.where(other.isfinite(), other, result)  # the least number of a type, in a mask, stays finite
