"""What happens on a device when a graph runs: kernels and collectives, linear in the local batch size."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import cached_property

from galvatron.ir.layout import Axis
from galvatron.machine import Kernel, Machine, Work


@dataclass(frozen=True)
class Linear:
    """A quantity that is linear in the local batch size."""

    constant: float
    slope: float

    def __call__(self, batch: float) -> float:
        return self.constant + self.slope * batch

    def __add__(self, other: Linear) -> Linear:
        return Linear(self.constant + other.constant, self.slope + other.slope)

    @staticmethod
    def through(batches: Sequence[int], values: Sequence[float]) -> Linear:
        """The line through the values at two batch sizes."""
        slope = (values[1] - values[0]) / (batches[1] - batches[0])
        return Linear(values[0] - slope * batches[0], slope)


@dataclass(frozen=True)
class Launch:
    """A kernel at any batch size: the sizes of its work, which are `Linear`, and the bytes that it touches.

    `of_weight` says that it makes the gradient of a weight, and nothing else. Many layers have the same one.
    """

    name: str
    dtype: str
    work: Work | None
    traffic_bytes: Linear
    of_weight: bool = False

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash((self.name, self.dtype, self.work, self.traffic_bytes, self.of_weight))

    def at(self, batch: float) -> Kernel:
        """The kernel at a local batch size."""
        work = self.work and Work(self.work.kind, tuple(size(batch) for size in self.work.sizes))
        return Kernel(self.name, self.dtype, self.traffic_bytes(batch), work, transposed=self.of_weight)


@dataclass(frozen=True)
class CollectiveCall:
    """One collective on a mesh axis; `payload_bytes` as in `Machine.collective_s`.

    One that is waited for `at_once` stands where its op cannot go on without it. One with a `window` is under way for a
    while. In a forward it begins here, and ends at the mark of its window; in a
    backward, whose windows are negative, it begins at the mark, and ends here.
    """

    kind: str
    axis: Axis
    payload_bytes: Linear
    window: int | None = None
    at_once: bool = False


MARK = "wait"
"""What a wait for a collective is called among those that are watched, in a forward and in a backward."""


@dataclass(frozen=True)
class Mark:
    """Where a forward waits for the collective of a window, or a backward begins that of its gradient."""

    window: int


Event = Launch | CollectiveCall | Mark


@dataclass(frozen=True)
class Dispatches:
    """What the process does in one pass over a graph: ops that launch something, and views, which launch nothing."""

    ops: int = 0
    views: int = 0


@dataclass(frozen=True)
class Profile:
    """One call of a graph on one device.

    `saved_bytes` are the unique storages that autograd keeps from forward to backward, other than state and
    `shared_bytes`: inputs without a gradient (masks, ids), which many layers keep together. `forward_extra_bytes` and
    `backward_extra_bytes` are the peaks of live memory above inputs, state and what is saved; `summing_extra_bytes` is
    that of the part of the backward that begins with the first gradient of state. `forward_dispatches` and
    `backward_dispatches` are what the process does meanwhile. By its `fingerprint` what was measured of it is found; it
    is empty where nothing was measured.
    """

    forward: tuple[Event, ...]
    backward: tuple[Event, ...]
    saved_bytes: Linear
    shared_bytes: tuple[tuple[str, Linear], ...]
    forward_extra_bytes: Linear
    backward_extra_bytes: Linear
    summing_extra_bytes: Linear = Linear(0.0, 0.0)
    forward_dispatches: Dispatches = Dispatches()
    backward_dispatches: Dispatches = Dispatches()
    fingerprint: str = ""

    def keeping_alone(self, names: Set[str]) -> Profile:
        """The same where some of the inputs without a gradient that are kept are kept by this layer alone."""
        own = (size for name, size in self.shared_bytes if name in names)
        shared = tuple((name, size) for name, size in self.shared_bytes if name not in names)
        return replace(self, saved_bytes=sum(own, self.saved_bytes), shared_bytes=shared)

    def on_axes(self, axes: Mapping[Axis, Axis]) -> Profile:
        """The same with collectives on other axes of equal sizes."""
        if all(axis == other for axis, other in axes.items()):
            return self
        return replace(self, forward=_on_axes(self.forward, axes), backward=_on_axes(self.backward, axes))


def _on_axes(events: tuple[Event, ...], axes: Mapping[Axis, Axis]) -> tuple[Event, ...]:
    return tuple(replace(e, axis=axes[e.axis]) if isinstance(e, CollectiveCall) else e for e in events)


def launches(events: Iterable[Event]) -> list[Launch]:
    """The kernels among events."""
    return [event for event in events if isinstance(event, Launch)]


def kernels_s(events: Iterable[Event], machine: Machine, batch: float) -> float:
    """Seconds of the kernels among events at a local batch size."""
    return sum(machine.kernel_at_s(event, batch) for event in launches(events))


def computing_s(profile: Profile, machine: Machine, batch: float) -> tuple[float, float, float]:
    """Seconds that a device computes in a call at a local batch size: forward, backward, and the part of the backward
    that is gradients of weights. Where the call was measured as a whole these are measured, with that part in the
    proportion of its kernels."""
    there, back = profile.forward_dispatches, profile.backward_dispatches
    forward_s = kernels_s(profile.forward, machine, batch) + machine.dispatched_s(there.ops, there.views)
    backward_s = kernels_s(profile.backward, machine, batch) + machine.dispatched_s(back.ops, back.views)
    weight_s = kernels_s((e for e in launches(profile.backward) if e.of_weight), machine, batch)
    measured = machine.layer_s(profile.fingerprint, batch) if profile.fingerprint else None
    if measured is None:
        return forward_s, backward_s, weight_s
    return *measured, weight_s * measured[1] / backward_s if backward_s else 0.0


def collectives_s(events: Iterable[Event], machine: Machine, batch: float) -> float:
    """Seconds by which the collectives among events lengthen them at a local batch size: all that they take, less what
    is hidden of those that are under way while something is computed.

    Several that are under way at once follow each other: what is computed meanwhile is beside the first one for as long
    as that lasts, then beside the next. What is computed again may start one that nobody waits for, where nothing more
    is needed of it: nothing is beside that.
    """
    events = tuple(events)
    calls = [event for event in events if isinstance(event, CollectiveCall)]
    awaited_s = sum(machine.collective_s(e.kind, e.payload_bytes(batch), e.axis) for e in calls)
    begun, ended = _under_way(events, machine, batch)
    under_way: list[_UnderWay] = []
    for index, event in enumerate(events):
        if isinstance(event, Launch):
            if under_way:
                _compute_beside(under_way, machine.kernel_at_s(event, batch))
        elif index in begun:
            under_way.append(begun[index])
        elif index in ended:
            own = ended[index]
            under_way.remove(own)
            awaited_s -= hidden_s(machine, own.axis, own.computing_s, own.communicating_s)
    return awaited_s


@dataclass(eq=False)
class _UnderWay:
    """A collective that was begun, and what is computed beside it until it is waited for."""

    axis: Axis
    communicating_s: float
    computing_s: float = 0.0


def _under_way(
    events: Sequence[Event], machine: Machine, batch: float
) -> tuple[dict[int, _UnderWay], dict[int, _UnderWay]]:
    """The collectives that are waited for after a while, by the event that begins each and by the one that ends it."""
    begun, ended, first = dict[int, _UnderWay](), dict[int, _UnderWay](), dict[int, int]()
    for index, event in enumerate(events):
        if isinstance(event, Launch) or event.window is None:
            continue
        if isinstance(event, CollectiveCall) == (event.window >= 0):  # the earlier one of the two
            first[event.window] = index
        elif event.window in first:
            both = events[first[event.window]], event
            (call,) = (one for one in both if isinstance(one, CollectiveCall))
            lasting_s = machine.collective_s(call.kind, call.payload_bytes(batch), call.axis)
            begun[first.pop(event.window)] = ended[index] = _UnderWay(call.axis, lasting_s)
    return begun, ended


def _compute_beside(under_way: Sequence[_UnderWay], seconds: float) -> None:
    for own in under_way:
        part_s = min(seconds, max(0.0, own.communicating_s - own.computing_s))
        own.computing_s += part_s
        seconds -= part_s
    under_way[-1].computing_s += seconds


def hidden_s(machine: Machine, axis: Axis, computing_s: float, communicating_s: float) -> float:
    """Seconds that a computation and a collective on an axis take less beside each other than one after the other."""
    together_s = machine.contention((axis,)).together_s(computing_s, communicating_s)
    return computing_s + communicating_s - together_s
