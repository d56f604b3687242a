"""What a layer class does on a device, read off its graph: each call of it is watched on fake tensors, forward and
backward.

Nothing here is a formula beside the code: the kernels, their FLOPs and traffic, the collectives with their adjoints,
the activations that autograd saves and the peak of live memory are those of the very graph that is emitted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from galvatron.costs.calls import Setting
from galvatron.costs.composed import Composed, Layer
from galvatron.costs.events import MARK, CollectiveCall, Dispatches, Event, Launch, Linear, Mark, Profile
from galvatron.costs.fusion import fused, kept_instead, padded, peak_bytes
from galvatron.costs.watch import ObservedEvent
from galvatron.errors import GalvatronError
from galvatron.ir.graph import Graph
from galvatron.ir.layout import Axis
from galvatron.ir.ops.kernels import BY_DEVICE
from galvatron.ir.ops.table import derived
from galvatron.ir.ops.work import Work
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
                settings = (Setting(kind, compiled, on, batch, skew) for batch in batches)
                first, second = (_Observed(layer, setting, recompute) for setting in settings)
            break
        except (IndexError, RuntimeError, ValueError):
            if on == "meta":  # torch has no shapes for some op there; fakes know more, and are slower
                on = "cpu"
            elif at is not None or batches[0] > _MOST_NEEDED:
                raise
            else:  # the model takes so many samples at least, as for `h[5]`
                batches = batches[1], 2 * batches[1]

    def line(a: float, b: float) -> Linear:
        return Linear.through(batches, (a, b))

    profile = Profile(
        forward=_fit_events(batches, first.forward, second.forward),
        backward=_fit_events(batches, first.backward, second.backward),
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
    return Doing(profile, layer.groups, tuple(_by_op(batches, first, second)) if layer.groups else ())


def _by_op(
    batches: tuple[int, int], first: _Observed, second: _Observed
) -> Iterator[tuple[tuple[Event, ...], tuple[Event, ...]]]:
    for one, other in zip(first.by_op, second.by_op, strict=True):
        forward, backward = (_fit_events(batches, a, b) for a, b in zip(one, other, strict=True))
        yield forward, backward


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


def _fit_events(batches: tuple[int, int], first: list[ObservedEvent], second: list[ObservedEvent]) -> tuple[Event, ...]:
    """One linear kernel or collective per event.

    The kernels of two batch sizes differ where a copy is needed at one of them only; then the larger run counts, in
    proportion to the batch.
    """
    if [(e.name, e.axis) for e in first] != [(e.name, e.axis) for e in second]:
        first = [_in_proportion(e, batches[0] / batches[1]) for e in second]
    fitted: list[Event] = []
    for a, b in zip(first, second, strict=True):
        size_bytes = Linear.through(batches, (a.size_bytes, b.size_bytes))
        if b.name == MARK and b.window is not None:
            fitted.append(Mark(b.window))
        elif b.axis is not None:
            fitted.append(CollectiveCall(b.name, b.axis, size_bytes, b.window))
        else:
            fitted.append(Launch(b.name, b.dtype, _fit_work(batches, a.work, b.work), size_bytes, b.of_weight))
    return tuple(fitted)


def _fit_work(batches: tuple[int, int], first: Work | None, second: Work | None) -> Work | None:
    if first is None or second is None:
        return None
    sizes = (Linear.through(batches, pair) for pair in zip(first.sizes, second.sizes, strict=True))
    return Work(second.kind, tuple(sizes))


def _in_proportion(event: ObservedEvent, share: float) -> ObservedEvent:
    """The event of so large a share of a batch; the first size of work is how often it is done."""
    work = event.work and Work(event.work.kind, (event.work.sizes[0] * share, *event.work.sizes[1:]))
    return replace(event, size_bytes=event.size_bytes * share, work=work)


class _Observed:
    """What a forward and a backward do, at one batch size."""

    def __init__(self, layer: Layer, setting: Setting, recompute: str) -> None:
        run = self._run = Composed(layer, setting, recompute)
        self.forward, self.backward = run.forward.events, run.backward.events
        self.forward_dispatches, self.backward_dispatches = run.forward.dispatched, run.backward.dispatched
        self.saved_bytes = run.saved_bytes + sum(size for name, size in run.kept.items() if run.has_gradient(name))
        self.shared_bytes = {name: size for name, size in run.kept.items() if not run.has_gradient(name)}
        self.forward_extra_bytes = run.forward_extra_bytes
        self.backward_extra_bytes = run.backward_extra_bytes
        self.summing_extra_bytes = run.summing_extra_bytes
        if setting.compiled:
            self._fuse(setting.kind)

    @property
    def by_op(self) -> Iterator[tuple[list[ObservedEvent], list[ObservedEvent]]]:
        """What each op runs, forward and backward."""
        run = self._run
        for index in range(len(run.layer.graph.ops)):
            back = run.backwards.get(index)
            acts = run.calls[index].forward, back.acts if back else ()
            forward, backward = ([act for act in own if isinstance(act, ObservedEvent)] for own in acts)
            yield forward, backward

    def _fuse(self, kind: str) -> None:
        """Kernels as the compiler groups them, without what it computes again."""
        run = self._run
        for events in (self.forward, self.backward) if kind == "cuda" else ():
            events[:] = map(padded, events)
        kept_inputs = {run.places[name] for name in run.kept}
        instead = kept_instead(self.forward, run.alive, kept_inputs | run.state)
        self.saved_bytes += round(sum(instead.more.values())) - sum(run.alive[value] for value in instead.again)
        lasting = run.results | instead.more.keys() | (run.alive.keys() - instead.again.keys())
        self.forward[:] = fused(self.forward, lasting=lasting)
        self.forward_dispatches = Dispatches(len(self.forward))
        kept = {value: size for value, size in run.alive.items() if value not in instead.again} | instead.more
        own = {value: size for value, size in kept.items() if value not in run.given}
        peak = peak_bytes(self.forward, {}, run.given, lasting)
        self.forward_extra_bytes = max(0, round(peak - sum(own.values())))
        self._fuse_backward(kept, instead.again)

    def _fuse_backward(self, kept: dict[int, float], again: dict[int, ObservedEvent]) -> None:
        gradients, backward = self._run.gradients, self.backward
        of_weights = {made for made, leaf in gradients.items() if leaf in self._run.state}
        backward[:] = fused(backward, lasting=gradients.keys(), of_weights=of_weights, again=again)
        self.backward_dispatches = Dispatches(len(backward))
        self.backward_extra_bytes = round(peak_bytes(backward, kept, self._run.given, lasting=gradients.keys()))
        self.summing_extra_bytes = min(self.summing_extra_bytes, self.backward_extra_bytes)
