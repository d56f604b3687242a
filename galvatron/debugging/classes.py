"""The class of a sharded program, run on all ranks of its mesh, beside the class that it was sharded from."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from galvatron.debugging.comparison import ROUNDING, Departure, check_size
from galvatron.debugging.rounding import Reference, least_norm
from galvatron.debugging.running import Tensors, every_value, gradients_by, runnable
from galvatron.debugging.simulation import combine, distribute, dual_layout, run_ranks, world
from galvatron.debugging.values import random_values
from galvatron.debugging.widened import undrawn, widened
from galvatron.errors import GalvatronError
from galvatron.ir.graph import Graph, Value
from galvatron.ir.layout import Layout, Mesh, Shard
from galvatron.ir.program import LayerClass
from galvatron.ir.types import evaluate


def class_departure(whole: Graph, local: LayerClass, differentiable: frozenset[str]) -> Departure | None:
    """Where a class departs from the one that it was sharded from, op by op, put together from all ranks; None where it
    does not.

    Args:
        whole: the graph of that class.
        differentiable: its inputs, state and outputs that a gradient goes through.

    Raises:
        GalvatronError: it has other inputs, state or results, or is too large to be run here.
    """
    for what, ours, theirs in (("inputs", whole.inputs, local.graph.inputs), ("state", whole.state, local.graph.state)):
        one, other = (", ".join(f"%{value.name}" for value in values) or "none" for values in (ours, theirs))
        if one != other:
            raise GalvatronError(f"@{local.name} has the {what} {other}, and @{local.base} {one}")
    if len(whole.outputs) != len(local.graph.outputs):
        raise GalvatronError(
            f"@{local.name} has {len(local.graph.outputs)} results, and @{local.base} {len(whole.outputs)}"
        )
    return _Sharded(whole, local, differentiable).departure()


class _Sharded:
    """Both classes with the same numbers.

    Args:
        own: samples of a rank; None for the fewest that there can be.
    """

    def __init__(self, whole: Graph, local: LayerClass, differentiable: frozenset[str], own: int | None = None) -> None:
        self._whole, self._local = undrawn(widened(whole)), replace(local, graph=undrawn(widened(local.graph)))
        self._differentiable = differentiable
        degree = 1 if local.strategy is None else local.strategy.degree("dp")
        self._own = own or _samples(self._whole, self._local.graph, degree)
        self._batch = self._own * degree
        check_size([self._whole], self._batch)
        self._layouts: dict[str, Layout] = {n: value.layout or () for n, value in self._local.graph.values.items()}
        self._names = dict(zip(whole.outputs, local.graph.outputs, strict=True))
        self._least = 0.0
        """The norm that a gradient is taken to have at least."""

    def departure(self) -> Departure | None:
        """See `class_departure`."""
        torch.manual_seed(0)
        given = random_values(self._whole, self._batch, 1.0, 0)
        leaves = {name: _leaf(tensor, name in self._differentiable) for name, tensor in given.items()}
        with runnable():
            expected = every_value(self._whole, leaves, self._batch)
        mesh, local = self._local.mesh, self._local.graph
        parts = {name: distribute(given[name], self._layouts[name], mesh, self._own) for name in given}
        ranks = [{n: _leaf(parts[n][r], n in self._differentiable) for n in given} for r in world(mesh)]
        with runnable():
            made = run_ranks(local, mesh, ranks, batch=self._own, global_batch=self._batch)
        both = [*self._in_both()]
        for name, whole in both:
            if found := self._off("value", name, [rank[name].detach() for rank in made], expected[whole].detach()):
                return found
        gradients = {
            name: torch.randn_like(expected[name])
            for name in self._whole.outputs
            if expected[name].requires_grad and not self._differentiable.isdisjoint((name, self._names[name]))
        }
        if not gradients:
            return None
        with runnable():
            wanted = gradients_by(expected, [expected[name] for name in gradients], list(gradients.values()))
        self._least = least_norm(wanted.values())
        split = {
            name: distribute(gradient, dual_layout(self._layouts[self._names[name]]), mesh, self._own, zeros=True)
            for name, gradient in gradients.items()
        }
        with runnable():
            own = self._local_gradients(made, split)
        for name, whole in reversed(both):
            if whole in wanted or name in own:
                gradient = wanted.get(whole, torch.zeros_like(expected[whole]))
                if found := self._off("gradient", name, own.get(name), gradient):
                    return found
        return None

    def _in_both(self) -> Iterator[tuple[str, str]]:
        """The values that both graphs have, in the order of the local one, with their names in the other one."""
        graph = self._local.graph
        order = [value.name for value in (*graph.inputs, *graph.state)]
        order += [value.name for op in graph.ops for value in op.results]
        back = {local: name for name, local in self._names.items()}
        for name in order:
            whole = name if name in self._whole.values else back.get(name)
            if whole is not None:
                yield name, whole

    def _local_gradients(self, made: list[Tensors], split: dict[str, list[Tensor]]) -> dict[str, list[Tensor]]:
        """The gradients of local values on every rank; one backward over all, since collectives need all."""
        ends = [(r, n) for r in range(len(made)) for n in split if made[r][self._names[n]].requires_grad]
        flowing = [(r, n) for r in range(len(made)) for n, t in made[r].items() if t.requires_grad]
        found = torch.autograd.grad(
            [made[r][self._names[n]] for r, n in ends],
            [made[r][n] for r, n in flowing],
            [split[n][r] for r, n in ends],
            allow_unused=True,
        )
        gradients: dict[str, list[Tensor]] = {}
        for (rank, name), gradient in zip(flowing, found, strict=True):
            own = gradients.setdefault(name, [torch.zeros_like(one[name]) for one in made])
            if gradient is not None:
                own[rank] = gradient
        return gradients

    def _off(self, what: str, name: str, parts: list[Tensor] | None, wanted: Tensor) -> Departure | None:
        """What a value, or its gradient, put together from all ranks, has of a departure."""
        layout = self._layouts[name]
        is_gradient = what == "gradient"
        try:
            total = (
                torch.zeros_like(wanted)
                if parts is None
                else combine(
                    parts,
                    dual_layout(layout) if is_gradient else layout,
                    self._local.mesh,
                    tuple(wanted.shape),
                    self._own,
                    zeros=is_gradient,
                )
            )
        except GalvatronError as error:
            return replace(self._departure(what, name, math.inf), note=str(error))
        least = self._least if is_gradient else 1e-6 * math.sqrt(wanted.numel())
        off = Reference(wanted, wanted).beside(total, ROUNDING, least)
        return None if off.is_rounding else self._departure(what, name, off.difference)

    def _departure(self, what: str, name: str, off: float) -> Departure:
        graph = self._local.graph
        readers = tuple(op for op in graph.ops if name in op.operands)
        makers = tuple(filter(None, [graph.producers.get(name)]))
        ops = readers if what == "gradient" else makers
        return Departure(what, name, name, ops, off, 1.0, self._local.name, self._local.mesh)


def conversion_departure(cls: LayerClass, *, differentiable: bool) -> Departure | None:
    """Where a conversion between layers changes the numbers of the value that it takes to another layout, or those of
    its gradient; None where it does not."""
    graph = widened(cls.graph)
    (given,), (name,) = graph.inputs, graph.outputs
    assert given.layout is not None
    sizes = [
        evaluate(size, _CONVERTED) * _ways(given.layout, cls.mesh, dim) for dim, size in enumerate(given.type.shape)
    ]
    shape = (Value(given.name, replace(given.type, shape=tuple(sizes))),)
    identity = Graph(shape, (), (), (given.name,))
    flowing = frozenset((given.name, name) if differentiable else ())
    return _Sharded(identity, cls, flowing, _CONVERTED).departure()


_CONVERTED = 4
"""Samples of a rank with which conversions are run."""


def _ways(layout: Layout, mesh: Mesh, dim: int) -> int:
    """Over how many ranks a dimension is cut."""
    cut = (isinstance(placement, Shard) and placement.dim == dim for placement in layout)
    return math.prod(axis.size for axis, own in zip(mesh, cut, strict=True) if own)


def _leaf(tensor: Tensor, differentiable: bool) -> Tensor:
    return tensor.detach().clone().requires_grad_(differentiable and tensor.is_floating_point())


def _samples(whole: Graph, local: Graph, degree: int) -> int:
    """The fewest samples of a rank above one at which every size is whole."""
    dims = [[dim for value in graph.values.values() for dim in value.type.shape] for graph in (whole, local)]
    for own in range(2, 1025):
        try:
            for dim in dims[0]:
                evaluate(dim, own * degree)
            for dim in dims[1]:
                evaluate(dim, own)
        except GalvatronError:
            continue
        return own
    raise GalvatronError("there is no number of samples up to 1024 of a rank at which all sizes are whole")
