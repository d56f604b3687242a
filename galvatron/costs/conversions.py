"""What it takes to bring a value from how one layer makes it to how another one reads it.

A conversion is one op after the other, each on what the one before has made, so that it takes what they take.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from itertools import chain

from galvatron.costs.events import CollectiveCall, Event, Profile, launches
from galvatron.errors import GalvatronError
from galvatron.ir.graph import Graph, Op, Value
from galvatron.ir.layout import Axis
from galvatron.machine import Machine
from galvatron.partition import Crossing, OnMesh, joined_axes


@dataclass(frozen=True)
class _Way:
    """What takes a value from one place to another.

    Attributes:
        steps: the numbers of its ops.
        shares: how many of its shares (what `b` counts in it) make a share of the layer before.
    """

    steps: tuple[int, ...]
    shares: int


@dataclass(frozen=True)
class _Seconds:
    """Of an op, seconds of each kernel and each collective, forward and backward."""

    forward: tuple[tuple[float, ...], tuple[float, ...]]
    backward: tuple[tuple[float, ...], tuple[float, ...]]


class Conversions:
    """Conversions between places; a place is a type and a layout on the devices. Each op of them is profiled once.

    Args:
        profiled: the profile of a graph; see `profile_graph`.
    """

    def __init__(self, profiled: Callable[..., Profile], machine: Machine) -> None:
        self._profiled, self._machine = profiled, machine
        self._places: dict[OnMesh, int] = {}
        self._by_number: list[OnMesh] = []
        self._ways: dict[tuple[int, int, bool], _Way | float] = {}
        self._numbers: dict[Hashable, int] = {}
        self._profiles: list[Profile] = []
        self._taken: dict[tuple[tuple[int, ...], float], float] = {}
        self._seconds: dict[tuple[int, float], _Seconds] = {}

    def place(self, value: Value, mesh: tuple[Axis, ...]) -> int:
        """The number of a value's place, whatever the value and the axes are called."""
        layout, axes = joined_axes(value.layout or (), mesh)
        placed = Value("x", value.type, layout), axes
        number = self._places.setdefault(placed, len(self._by_number))
        if number == len(self._by_number):
            self._by_number.append(placed)
        return number

    def seconds(self, source: int, target: int, batch: float, *, differentiable: bool) -> float:
        """Seconds of bringing a value from one place to another; infinite if the meshes do not nest."""
        if source == target:
            return 0.0
        key = source, target, differentiable
        if (way := self._ways.get(key)) is None:
            way = self._ways[key] = self._way(*key)
        if not isinstance(way, _Way):
            return way
        taken = way.steps, batch / way.shares
        if (seconds := self._taken.get(taken)) is None:
            seconds = self._taken[taken] = self._priced(*taken)
        return seconds

    def _priced(self, steps: tuple[int, ...], batch: float) -> float:
        """Seconds of ops at a local batch size: of all kernels and of all collectives, forward and then backward."""
        found = [self._step_s(step, batch) for step in steps]
        kernels, collectives = (
            chain(*(step.forward[kind] for step in found), *(step.backward[kind] for step in reversed(found)))
            for kind in (0, 1)
        )
        return sum(kernels) + sum(collectives)

    def _step_s(self, step: int, batch: float) -> _Seconds:
        if (step, batch) not in self._seconds:
            profile = self._profiles[step]
            self._seconds[step, batch] = _Seconds(
                *(self._events_s(events, batch) for events in (profile.forward, profile.backward))
            )
        return self._seconds[step, batch]

    def _events_s(self, events: tuple[Event, ...], batch: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
        machine, sent = self._machine, [event for event in events if isinstance(event, CollectiveCall)]
        return (
            tuple(machine.kernel_s(event.at(batch)) for event in launches(events)),
            tuple(machine.collective_s(event.kind, event.payload_bytes(batch), event.axis) for event in sent),
        )

    def _way(self, source: int, target: int, differentiable: bool) -> _Way | float:
        """What takes a value from place to place; its seconds alone where nothing does, 0, or nothing can, infinity."""
        ends = self._by_number[source], self._by_number[target]
        try:
            crossing = Crossing.between(*ends, differentiable=differentiable)
            if crossing is None:
                return 0.0
            before = (crossing.value, *(op.result for op in crossing.ops))
            axes = {axis.name: axis for axis in crossing.mesh}
            steps = tuple(
                self._step(op, value, axes[str(op.kwarg("axis"))], differentiable)
                for op, value in zip(crossing.ops, before, strict=False)
            )
        except GalvatronError:
            return math.inf
        return _Way(steps, crossing.shares)

    def _step(self, op: Op, operand: Value, axis: Axis, differentiable: bool) -> int:
        """The number of an op, one for all that do the same over such groups."""
        arguments = tuple(kwarg for kwarg in op.kwargs if kwarg[0] != "axis")
        key = op.target, arguments, operand.type, op.result.type, axis.size, axis.stride, differentiable
        if key not in self._numbers:
            graph = Graph((operand,), (), (op,), (op.result.name,))
            with_gradient = frozenset([operand.name]) if differentiable else frozenset[str]()
            self._profiles.append(self._profiled(graph, (axis,), with_gradient))
            self._numbers[key] = len(self._numbers)
        return self._numbers[key]
