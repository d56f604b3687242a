"""A layer class by itself on this rank's device: the function that is emitted for it, on made-up values.

Its communications are over when they begin: they are priced apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from galvatron import runtime as rt
from galvatron.calibration.cases import LayerCase
from galvatron.codegen import emit_class, load_module
from galvatron.codegen.function import symbols_in
from galvatron.ir.graph import Graph
from galvatron.ir.index_bounds import bounds as places
from galvatron.ir.layout import nameable_axes
from galvatron.ir.local_functions import with_local_functions
from galvatron.ir.recompute import in_steps, replays
from galvatron.ir.types import TORCH_DTYPE_NAMES, TensorType, evaluate, lengths_in, numbers_in
from galvatron.recompute import recomputed
from galvatron.runtime.bounds import bounds
from galvatron.runtime.comm import SilentGroup
from galvatron.runtime.started import ending

Call = Callable[..., Any]


class Alone:
    """A class that can be called as a layer calls it.

    Attributes:
        values: its data and its state, at some batch size.
        differentiates: whether anything has a gradient.
    """

    def __init__(self, case: LayerCase, samples: int, device: torch.device) -> None:
        cls = case.local.cls
        text, function = emit_class(cls, case.only_given)
        called: Call = getattr(load_module(f"{function.name}.py", text), function.name)
        if replays(kind := case.local.recompute):
            called = recomputed(ending(called), selective=in_steps(cls.graph, kind))
        axes = {axis.name: axis for axis in nameable_axes(cls.mesh)}
        self._axes = [rt.Axis(axes[n].size, axes[n].stride, 0, SilentGroup(axes[n].size)) for n in function.axes]
        graph = with_local_functions(cls.graph, cls.mesh)
        told = {"B": samples, "m": 1, "b": samples, "device": device, "training": True, "asked": False}
        numbers = _numbers(graph)
        self._keywords: dict[str, Any] = {name: told[name] for name in function.keywords}
        self._keywords |= {keyword: numbers[name] for keyword, name in function.numbers}
        if function.random:
            self._keywords["seed"] = rt.Seed(device, 0, 0, 0, cls.name)
        self._called = called
        self.values = tuple(_values(case.local.graph, samples, device, case.local.differentiable))
        self.differentiates = any(result.requires_grad for result in self._results(self.values))

    def forward(self, *values: Tensor) -> object:
        """What the class computes in a training step."""
        return self._results(values)

    def both(self, *values: Tensor) -> object:
        """That, and the gradients of all that has one, for gradients of the results that are as good as any."""
        results = [result for result in self._results(values) if result.requires_grad]
        leaves = [value for value in values if value.requires_grad]
        gradients = [torch.ones_like(result) for result in results]
        return torch.autograd.grad(results, leaves, gradients, allow_unused=True)

    def _results(self, values: tuple[Tensor, ...]) -> list[Tensor]:
        bounds.start()
        results = self._called(*self._axes, *values, **self._keywords)
        return [r for r in (results if isinstance(results, tuple) else (results,)) if isinstance(r, Tensor)]


_NUMBERS = {"float": 0.75, "int": 2}
"""What stands for a number of the batch, by its kind."""

_STATE_SCALE = 0.02
"""So that results stay finite: arithmetic with infinities may take another time."""


def _numbers(graph: Graph) -> dict[str, float]:
    symbols = symbols_in(graph)
    found: dict[str, float] = {n.parameter: _NUMBERS[n.number_kind] for symbol in symbols for n in numbers_in(symbol)}
    return found | {length.name: length.example for symbol in symbols for length in lengths_in(symbol)}


def _values(graph: Graph, samples: int, device: torch.device, differentiable: frozenset[str]) -> Iterator[Tensor]:
    most = places(graph, samples)
    state = {value.name for value in graph.state}
    for value in (*graph.inputs, *graph.state):
        made = _value(value.type, samples, device, most.get(value.name, 2))
        if value.name in state and value.type.is_floating:
            made *= _STATE_SCALE
        yield made.requires_grad_(value.name in differentiable and made.is_floating_point())


def _value(type_: TensorType, samples: int, device: torch.device, most: int) -> Tensor:
    shape, dtype = [evaluate(size, samples) for size in type_.shape], getattr(torch, TORCH_DTYPE_NAMES[type_.dtype])
    if type_.is_floating:
        return torch.randn(shape, device=device).to(dtype)
    if dtype == torch.bool:
        return torch.ones(shape, dtype=dtype, device=device)
    return torch.randint(most, shape, device=device).to(dtype)
