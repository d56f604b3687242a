"""What it takes to bring a value from how one layer makes it to how another one reads it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from galvatron.costs.events import Profile
from galvatron.errors import GalvatronError
from galvatron.ir.graph import Value
from galvatron.ir.layout import Axis, joined_layout
from galvatron.partition import OnMesh, redistribution


class Conversions:
    """Conversions between places, each found and profiled once; a place is a type and a layout on the devices.

    Args:
        profiled: the profile of a graph; see `profile_graph`.
        seconds: what a profile takes with so many samples of a share.
    """

    def __init__(self, profiled: Callable[..., Profile], seconds: Callable[[Profile, float], float]) -> None:
        self._profiled, self._seconds = profiled, seconds
        self._places: dict[OnMesh, int] = {}
        self._found: dict[tuple[int, int, bool], tuple[Profile, float] | float] = {}
        self._taken: dict[tuple[int, int, bool, float], float] = {}

    def place(self, value: Value, mesh: tuple[Axis, ...]) -> int:
        """The number of a value's place, whatever the value and the axes are called."""
        layout, coarse = joined_layout(value.layout or (), mesh)
        placed = Value("x", value.type, layout), tuple(replace(axis, name="") for axis in coarse)
        return self._places.setdefault(placed, len(self._places))

    def seconds(self, source: int, target: int, batch: float, *, differentiable: bool) -> float:
        """Seconds of bringing a value from one place to another; infinite if the meshes do not nest."""
        if source == target:
            return 0.0
        key = source, target, differentiable, batch
        if key not in self._taken:
            self._taken[key] = self._priced(source, target, batch, differentiable)
        return self._taken[key]

    def _priced(self, source: int, target: int, batch: float, differentiable: bool) -> float:
        key = source, target, differentiable
        if key not in self._found:
            self._found[key] = self._profile(source, target, differentiable)
        found = self._found[key]
        return self._seconds(found[0], batch / found[1]) if isinstance(found, tuple) else found

    def _profile(self, source: int, target: int, differentiable: bool) -> tuple[Profile, float] | float:
        """What converts a value, and the number of its shares (what `b` counts in it) that make a share of the layer
        before; its seconds alone where nothing does, 0, or nothing can, infinity."""
        places = list(self._places)
        try:
            step = redistribution("x", places[source], places[target], differentiable=differentiable)
        except GalvatronError:
            return math.inf
        if step is None:
            return 0.0
        with_gradient = frozenset("x") if differentiable else frozenset[str]()
        return self._profiled(step.cls.graph, step.cls.mesh, with_gradient), float(step.shares)
