"""The class of a sharded program, run on all ranks of its mesh, beside the class that it was sharded from."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from galvatron.debugging.comparison import ROUNDING, Departure, check_known, check_size, not_finite
from galvatron.debugging.rounding import Reference, least_norm
from galvatron.debugging.running import Tensors, callers_of, every_value, gradients_by, runnable
from galvatron.debugging.sides import Sides, check_sides
from galvatron.debugging.simulation import combine, distribute, dual_layout, run_ranks, world
from galvatron.debugging.trials import SCALES, Trial, settle, trials
from galvatron.debugging.values import random_values
from galvatron.debugging.widened import undrawn, widened
from galvatron.errors import GalvatronError
from galvatron.ir.graph import Graph, Value
from galvatron.ir.layout import Layout, Mesh, Shard
from galvatron.ir.program import LayerClass
from galvatron.ir.types import BatchSizes, evaluate


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
    wide = undrawn(widened(whole)), undrawn(widened(local.graph))
    unknown: set[tuple[str, str]] | None = None
    sides = Sides(whole), Sides(local.graph)
    for trial in trials(wide, BatchSizes(), _degree(local)):
        compared = _Sharded(*wide, local, differentiable, trial, sides)
        if (found := compared.departure()) is not None:
            return found
        unknown = compared.unknown if unknown is None else unknown & compared.unknown
    check_known(unknown or (), f" in class @{local.name}")
    check_sides(*sides)
    return None


def _degree(cls: LayerClass) -> int:
    return 1 if cls.strategy is None else cls.strategy.sample_shards


class _Sharded:
    """Both classes with the same numbers.

    Args:
        whole, own: both graphs, as they are run.
        local: the class.
        trial: with what they are run.
        sides: what sees the values of both.
    """

    def __init__(
        self,
        whole: Graph,
        own: Graph,
        local: LayerClass,
        differentiable: frozenset[str],
        trial: Trial,
        sides: tuple[Sides, Sides] | None = None,
    ) -> None:
        self._written = local.graph
        self._whole, self._local = (
            settle(whole, trial.settled), replace(local, graph=settle(own, trial.settled))
        )  # fmt: skip
        self._differentiable, self._sides = differentiable, sides
        self._own, self._scale = trial.samples, trial.scale
        self._batch = self._own * _degree(local)
        check_size([self._whole], self._batch)
        self._layouts: dict[str, Layout] = {n: value.layout or () for n, value in self._local.graph.values.items()}
        self._names = dict(zip(whole.outputs, local.graph.outputs, strict=True))
        self._least = 0.0
        """The norm that a gradient is taken to have at least."""
        self.unknown: set[tuple[str, str]] = set()
        """What has to be the same, and is nowhere finite: then any two are."""

    def departure(self) -> Departure | None:
        """See `class_departure`."""
        torch.manual_seed(0)
        given = random_values(self._whole, self._batch, self._scale, 0)
        expected, nearby = (self._expected(given, rounded=rounded) for rounded in (False, True))
        self.unknown = not_finite("value", {name: expected[name] for name in self._whole.outputs})
        mesh, local = self._local.mesh, self._local.graph
        parts = {name: distribute(given[name], self._layouts[name], mesh, self._own) for name in given}
        ranks = [{n: _leaf(parts[n][r], n in self._differentiable) for n in given} for r in world(mesh)]
        with runnable():
            made = run_ranks(local, mesh, ranks, batch=self._own, global_batch=self._batch)
        if self._sides is not None:
            for seen, runs in zip(self._sides, ([expected], made), strict=True):
                for values in runs:
                    seen.see(values)
        both = [*self._in_both()]
        for name, whole in both:
            reference = Reference(expected[whole].detach(), nearby[whole].detach())
            if found := self._off("value", name, [rank[name].detach() for rank in made], reference):
                return found
        gradients = {
            name: torch.randn_like(expected[name])
            for name in self._whole.outputs
            if expected[name].requires_grad and not self._differentiable.isdisjoint((name, self._names[name]))
        }
        if not gradients:
            return None
        with runnable():
            wanted, near = (
                gradients_by(values, [values[name] for name in gradients], list(gradients.values()))
                for values in (expected, nearby)
            )
        self._least = least_norm(wanted.values())
        self.unknown |= not_finite("gradient", {name: wanted[name] for name in given if name in wanted})
        split = {
            name: distribute(gradient, dual_layout(self._layouts[self._names[name]]), mesh, self._own, zeros=True)
            for name, gradient in gradients.items()
        }
        with runnable():
            own = self._local_gradients(made, split)
        for name, whole in reversed(both):
            if whole in wanted or name in own:
                zero = torch.zeros_like(expected[whole])
                reference = Reference(wanted.get(whole, zero), near.get(whole, zero))
                if found := self._off("gradient", name, own.get(name), reference):
                    return found
        return None

    def _expected(self, given: Tensors, *, rounded: bool) -> Tensors:
        """All values of the whole class; see `callers_of`."""
        leaves = {name: _leaf(tensor, name in self._differentiable) for name, tensor in given.items()}
        with runnable():
            return every_value(self._whole, leaves, self._batch, callers_of(self._whole, rounded=rounded))

    def _in_both(self) -> Iterator[tuple[str, str]]:
        """The values that both graphs have, in the order of the local one, with their names in the other one."""
        graph = self._written
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

    def _off(self, what: str, name: str, parts: list[Tensor] | None, reference: Reference) -> Departure | None:
        """What a value, or its gradient, put together from all ranks, has of a departure."""
        layout, wanted = self._layouts[name], reference.wanted
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
        least = self._least if is_gradient else 1e-6 * self._scale * math.sqrt(wanted.numel())
        off = reference.beside(total, ROUNDING, least)
        return None if off.is_rounding else self._departure(what, name, off.difference)

    def _departure(self, what: str, name: str, off: float) -> Departure:
        graph = self._written
        readers = tuple(op for op in graph.ops if name in op.operands)
        makers = tuple(filter(None, [graph.producers.get(name)]))
        ops = readers if what == "gradient" else makers
        return Departure(what, name, name, ops, off, self._scale, self._local.name, self._local.mesh)


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
    return _Sharded(identity, graph, cls, flowing, Trial(_CONVERTED, SCALES[0], {})).departure()


_CONVERTED = 4
"""Samples of a rank with which conversions are run."""


def _ways(layout: Layout, mesh: Mesh, dim: int) -> int:
    """Over how many ranks a dimension is cut."""
    cut = (isinstance(placement, Shard) and placement.dim == dim for placement in layout)
    return math.prod(axis.size for axis, own in zip(mesh, cut, strict=True) if own)


def _leaf(tensor: Tensor, differentiable: bool) -> Tensor:
    return tensor.detach().clone().requires_grad_(differentiable and tensor.is_floating_point())
