"""What a layer class does on a device, read off its graph: each call of it is watched on fake tensors, forward and
backward.

Nothing here is a formula beside the code: the kernels, their FLOPs and traffic, the collectives with their adjoints,
the activations that autograd saves and the peak of live memory are those of the very graph that is emitted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from galvatron.costs.calls import Setting
from galvatron.costs.composed import Composed, Layer, Pass
from galvatron.costs.events import Dispatches, Event, Linear, Profile
from galvatron.costs.fitted import all_fitted
from galvatron.costs.fusion import fused, kept_instead, padded, peak_bytes
from galvatron.costs.together import Settings, UnlikeError
from galvatron.costs.watch import ObservedEvent
from galvatron.errors import GalvatronError
from galvatron.ir.graph import Graph
from galvatron.ir.layout import Axis
from galvatron.ir.ops.kernels import BY_DEVICE
from galvatron.ir.ops.table import derived
from galvatron.ir.skew import EVEN
from galvatron.ir.types import evaluate
from galvatron.ir.verify.computed import silence

_MOST_NEEDED = 512
"""Samples that are not too few for any model."""


def profile_graph(
    graph: Graph,
    mesh: tuple[Axis, ...],
    differentiable: frozenset[str],
    recompute: str = "none",
    *,
    at: int | None = None,
    kind: str = "cpu",
    compiled: bool = False,
    skew: float = EVEN,
) -> Profile:
    """Runs what a graph does in training at two batch sizes and puts lines through that.

    Args:
        mesh: the axes that its collectives name.
        differentiable: its inputs and state that have a gradient.
        recompute: which activations the backward computes again, as in a strategy; it does, as at run time.
        at: the local batch size that matters, for a graph that is not linear in it: one that pairs samples.
        kind: of the device that runs it (`Device.kind`).
        compiled: whether `torch.compile` compiles it (`costs.fusion`).
        skew: how unevenly rows choose (`galvatron.ir.skew`).
    """
    layer = Layer.of(graph, mesh, differentiable)
    return profile_layer(layer, recompute, at=at, kind=kind, compiled=compiled, skew=skew).on(layer.groups)


@dataclass(frozen=True, eq=False)
class Doing:
    """What layers that do the same do: one object for all of them. Collectives of the profile are on `groups`, each in
    the place of the one that a layer has there in its own (`Layer.groups`).

    `by_op` is what each op runs by itself, forward and backward, of layers that communicate.
    """

    profile: Profile
    groups: tuple[Axis, ...]
    by_op: tuple[tuple[tuple[Event, ...], tuple[Event, ...]], ...] = ()

    def on(self, groups: tuple[Axis, ...]) -> Profile:
        """The profile of a layer with other groups."""
        return self.profile.on_axes(dict(zip(self.groups, groups, strict=True)))


def profile_layer(
    layer: Layer,
    recompute: str,
    *,
    at: int | None = None,
    kind: str = "cpu",
    compiled: bool = False,
    skew: float = EVEN,
) -> Doing:
    """As `profile_graph`, of what a step that trains runs; once for all layers that do the same."""
    batches = _batches(layer.graph, layer.mesh) if at is None else (at, 2 * at)
    return _profile(_Alike(layer), recompute, batches, at, kind, compiled, skew if layer.uneven else EVEN)


@dataclass(frozen=True)
class _Alike:
    """All layers that do the same, by one of them."""

    layer: Layer

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Alike) and self.layer.alike == other.layer.alike

    def __hash__(self) -> int:
        return self.layer.alike_hash


@derived(maxsize=1 << 12)
def _profile(
    alike: _Alike,
    recompute: str,
    batches: tuple[int, int],
    at: int | None,
    kind: str,
    compiled: bool,
    skew: float,
) -> Doing:
    layer = alike.layer
    on = _device_of(kind, layer.graph)
    while True:
        try:
            with silence():
                settings = tuple(Setting(kind, compiled, on, batch, skew) for batch in batches)
                both = _Both.of(layer, settings, recompute)
            break
        except (IndexError, RuntimeError, ValueError):
            if on == "meta":  # torch has no shapes for some op there; fakes know more, and are slower
                on = "cpu"
            elif at is not None or batches[0] > _MOST_NEEDED:
                raise
            else:  # the model takes so many samples at least, as for `h[5]`
                batches = batches[1], 2 * batches[1]

    first, second = both.each

    def line(a: float, b: float) -> Linear:
        return Linear.through(batches, (a, b))

    profile = Profile(
        forward=both.forward,
        backward=both.backward,
        saved_bytes=line(first.saved_bytes, second.saved_bytes),
        shared_bytes=tuple(
            (name, line(first.shared_bytes.get(name, size), size)) for name, size in second.shared_bytes.items()
        ),
        forward_extra_bytes=line(first.forward_extra_bytes, second.forward_extra_bytes),
        backward_extra_bytes=line(first.backward_extra_bytes, second.backward_extra_bytes),
        summing_extra_bytes=line(first.summing_extra_bytes, second.summing_extra_bytes),
        forward_dispatches=second.forward_dispatches,
        backward_dispatches=second.backward_dispatches,
    )
    return Doing(profile, layer.groups, tuple(both.by_op) if layer.groups else ())


def _device_of(kind: str, graph: Graph) -> str:
    """Where tensors are for torch to show what a kind of device runs: on the meta device, where the table of kernels
    says what torch would choose by the device, and otherwise on the CPU, as fakes, which take three times as long.
    """
    return "cpu" if kind == "cpu" or any(op.name in BY_DEVICE for op in graph.ops) else "meta"


def _batches(graph: Graph, mesh: tuple[Axis, ...]) -> tuple[int, int]:
    """Two small batch sizes at which every shape is whole; not 1, where a transposed tensor may count as contiguous."""
    step = 2
    try:
        for value in graph.values.values():
            for dim in value.type.shape:
                evaluate(dim, step)
    except GalvatronError:
        step *= math.prod(axis.size for axis in mesh)
    return step, 2 * step


@dataclass(frozen=True)
class _Both:
    """What is observed at two batch sizes: in one run, where that does the same at both."""

    batches: tuple[int, ...]
    each: tuple[_Observed, ...]

    @staticmethod
    def of(layer: Layer, settings: Settings, recompute: str) -> _Both:
        """A layer's."""
        places = range(len(settings))
        try:
            run = Composed(layer, settings, recompute)
            each = tuple(_Observed(run, place) for place in places)
        except UnlikeError:
            each = tuple(_Observed(Composed(layer, (setting,), recompute), 0) for setting in settings)
        return _Both(tuple(setting.batch for setting in settings), each)

    @property
    def together(self) -> bool:
        """Whether it is one run."""
        return self.each[0].run is self.each[1].run

    @property
    def forward(self) -> tuple[Event, ...]:
        """What the forward runs, at any batch size."""
        first, second = self.each
        return self._seen(first.run.forward) or all_fitted(self.batches, first.forward, second.forward)

    @property
    def backward(self) -> tuple[Event, ...]:
        """The same of the backward."""
        first, second = self.each
        return self._seen(first.run.backward) or all_fitted(self.batches, first.backward, second.backward)

    @property
    def by_op(self) -> Iterator[tuple[tuple[Event, ...], tuple[Event, ...]]]:
        """The same of each op by itself, forward and backward."""
        first, second = self.each
        if self.together:
            for forward, backward in first.run.by_op:
                yield tuple(seen.event for seen in forward), tuple(seen.event for seen in backward)
            return
        for one, other in zip(first.by_op, second.by_op, strict=True):
            forward, backward = (all_fitted(self.batches, a, b) for a, b in zip(one, other, strict=True))
            yield forward, backward

    def _seen(self, of: Pass) -> tuple[Event, ...]:
        """What a pass runs, as it was seen at both sizes; nothing where that does not say it."""
        compiled = self.each[0].run.settings[0].compiled
        return tuple(seen.event for seen in of.events) if self.together and not compiled else ()


class _Observed:
    """What a forward and a backward do, at one batch size: by its place, one of those of a run."""

    def __init__(self, run: Composed, place: int) -> None:
        self.run, self._place = run, place
        self.forward, self.backward = ([seen.events[place] for seen in of.events] for of in (run.forward, run.backward))
        self.forward_dispatches, self.backward_dispatches = run.forward.dispatched, run.backward.dispatched
        kept = {name: sizes[place] for name, sizes in run.kept.items()}
        self.saved_bytes = run.saved_bytes[place] + sum(size for name, size in kept.items() if run.has_gradient(name))
        self.shared_bytes = {name: size for name, size in kept.items() if not run.has_gradient(name)}
        self.forward_extra_bytes = run.forward_extra_bytes[place]
        self.backward_extra_bytes = run.backward_extra_bytes[place]
        self.summing_extra_bytes = run.summing_extra_bytes[place]
        if run.settings[place].compiled:
            self._fuse(run.settings[place].kind)

    @property
    def by_op(self) -> Iterator[tuple[list[ObservedEvent], list[ObservedEvent]]]:
        """What each op runs, forward and backward."""
        for forward, backward in self.run.by_op:
            yield [seen.events[self._place] for seen in forward], [seen.events[self._place] for seen in backward]

    def _fuse(self, kind: str) -> None:
        """Kernels as the compiler groups them, without what it computes again."""
        run, place = self.run, self._place
        alive = {value: sizes[place] for value, sizes in run.alive.items()}
        for events in (self.forward, self.backward) if kind == "cuda" else ():
            events[:] = map(padded, events)
        kept_inputs = {run.places[name] for name in run.kept}
        instead = kept_instead(self.forward, alive, kept_inputs | run.state)
        self.saved_bytes += round(sum(instead.more.values())) - sum(alive[value] for value in instead.again)
        lasting = run.results | instead.more.keys() | (alive.keys() - instead.again.keys())
        self.forward[:] = fused(self.forward, lasting=lasting)
        self.forward_dispatches = Dispatches(len(self.forward))
        kept = {value: size for value, size in alive.items() if value not in instead.again} | instead.more
        own = {value: size for value, size in kept.items() if value not in run.given}
        peak = peak_bytes(self.forward, {}, run.given, lasting)
        self.forward_extra_bytes = max(0, round(peak - sum(own.values())))
        self._fuse_backward(kept, instead.again)

    def _fuse_backward(self, kept: dict[int, float], again: dict[int, ObservedEvent]) -> None:
        gradients, backward = self.run.gradients, self.backward
        of_weights = {made for made, leaf in gradients.items() if leaf in self.run.state}
        backward[:] = fused(backward, lasting=gradients.keys(), of_weights=of_weights, again=again)
        self.backward_dispatches = Dispatches(len(backward))
        self.backward_extra_bytes = round(peak_bytes(backward, kept, self.run.given, lasting=gradients.keys()))
        self.summing_extra_bytes = min(self.summing_extra_bytes, self.backward_extra_bytes)
