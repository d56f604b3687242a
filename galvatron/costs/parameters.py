"""What the parameters of a layer cost: what is sent, added up and updated of them, and what memory that takes.

All of it follows from the parameters of a layer and of its neighbours: strategies under which these are equal, by
sizes, groups of devices and levels, cost the same, and are priced once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import sqrt
from typing import Any

from galvatron.costs.events import CollectiveCall
from galvatron.costs.memory import Memory
from galvatron.costs.model import Repeated
from galvatron.costs.parts import Parameters, Sent
from galvatron.costs.state import LocalParameter, state_collectives
from galvatron.ir.collectives import LIBRARY_COPIES
from galvatron.ir.layout import Axis
from galvatron.ir.ops.work import product
from galvatron.ir.update_rule import ROUND_BYTES
from galvatron.ir.zero import BUCKET_BYTES
from galvatron.machine import Kernel, Machine


@dataclass(frozen=True, eq=False)
class HeldState:
    """What a layer holds of state: by name what each parameter costs, and the bytes of other state and of its
    new values. `number` is one for all with equal states in the same order, whatever they are called."""

    parameters: Mapping[str, LocalParameter]
    other_bytes: int
    number: int

    def named(self, names: Iterable[str]) -> HeldState:
        """The same of parameters with other names."""
        return replace(self, parameters=dict(zip(names, self.parameters.values(), strict=True)))


@dataclass(frozen=True)
class PlainState:
    """What a layer holds of state at ZeRO level 0, where nothing is computed again: as `HeldState`, with whether its
    backward reads the values, whether it has one that could compute again, and the parameters that stay at that level.
    """

    parameters: Mapping[str, LocalParameter]
    other_bytes: int
    reread: bool
    replayed: bool
    whole: frozenset[str]


@dataclass(frozen=True)
class Nearer:
    """A parameter that a nearer layer holds too, by its place among those of the layer.

    Attributes:
        layer: the nearer one.
        gathered: whether the backward of that one gathers the values.
    """

    place: int
    layer: int
    gathered: bool


@dataclass(frozen=True)
class _UnderWay:
    """Bytes of a layer's parameters that are there while a neighbour runs; see `Parameters`."""

    returning_bytes: float
    arriving_bytes: float
    leaving_bytes: float
    leaving_added_bytes: float


class ParameterCosts:
    """Prices of parameters on a machine."""

    def __init__(self, machine: Machine) -> None:
        kind = machine.cluster.device.kind
        self._machine = machine
        self._at_once = kind != "cpu"
        self._library_copies = LIBRARY_COPIES.get(kind, {})
        self._numbers: dict[tuple[tuple[LocalParameter, ...], int], int] = {}
        self._found: dict[tuple[Hashable, ...], Parameters] = {}
        self._alone: dict[tuple[int, int], dict[str, Any]] = {}
        self._passing: dict[int, _UnderWay] = {}

    def held(self, parameters: Mapping[str, LocalParameter], other_bytes: int = 0) -> HeldState:
        """What a layer holds."""
        key = tuple(parameters.values()), other_bytes
        return HeldState(parameters, other_bytes, self._numbers.setdefault(key, len(self._numbers)))

    def seconds_and_bytes(
        self,
        held: HeldState,
        sends: int,
        before: HeldState,
        after: HeldState,
        repeated: tuple[Nearer, ...],
        border: Axis,
    ) -> Parameters:
        """What the parameters of a layer cost, and those of its neighbours beside it.

        Args:
            held: what it holds, first what it sends for in each micro-batch: so many, the others are its epilogue's.
            before, after: what its neighbours hold of which values and gradients are on their way.
            repeated: what it holds of nearer layers, those of the nearest first.
            border: the two pipeline ranks on both sides of a stage border.
        """
        key = held.number, sends, before.number, after.number, repeated, border if repeated else None
        if key not in self._found:
            states = tuple(held.parameters.values())
            self._found[key] = Parameters(
                **self._own(held, sends),
                repeated=tuple(self._settled(states, sends, repeated, border)) if repeated else (),
                returning_bytes=self._under_way(before).returning_bytes,
                arriving_bytes=self._under_way(after).arriving_bytes,
                leaving_bytes=self._under_way(after).leaving_bytes,
                leaving_added_bytes=self._under_way(after).leaving_added_bytes,
            )
        return self._found[key]

    def _own(self, held: HeldState, sends: int) -> dict[str, Any]:
        """The part of `Parameters` that neighbours have no say in."""
        key = held.number, sends
        if key not in self._alone:
            states = tuple(held.parameters.values())
            self._alone[key] = {
                "sent": self._sent_s(states[:sends], states),
                "accumulated_s": self._machine.moved_s(sum(one.accumulation_bytes for one in states)),
                "host_s": self._machine.host_s(len(states), 0, backward=True),
                "state": sum((one.kept for one in states), Memory(buffers=held.other_bytes)),
                "late_bytes": sum(one.late_bytes for one in states),
                "update_bytes": self._update_bytes(states),
                "bucket_bytes": sum(one.bucket_bytes for one in states),
                "update_s": self._update_s(states),
                "contention": self._machine.contention(axis for one in states if one.is_sent for axis in one.axes),
                "gathered_bytes": sum(one.gathered_bytes for one in states),
                "regathered_bytes": sum(one.regathered_bytes for one in states),
                "summed_bytes": sum(one.summed_bytes for one in states),
            }
        return self._alone[key]

    def _under_way(self, held: HeldState) -> _UnderWay:
        """What is there of a layer's parameters while its neighbours run."""
        if held.number not in self._passing:
            states = tuple(held.parameters.values())
            self._passing[held.number] = _UnderWay(
                returning_bytes=sum(self._arriving_bytes(one) for one in states if one.reread),
                arriving_bytes=sum(map(self._arriving_bytes, states)),
                leaving_bytes=self._with_copies("reduce_scatter", sum(one.summed_bytes for one in states)),
                leaving_added_bytes=sum(one.added_bytes for one in states),
            )
        return self._passing[held.number]

    def _arriving_bytes(self, state: LocalParameter) -> float:
        """Bytes in use while the values of a parameter are gathered."""
        return self._with_copies("all_gather", state.gathered_bytes) + state.cast_bytes

    def _with_copies(self, kind: str, payload_bytes: float) -> float:
        """Bytes in use while a collective is under way."""
        return (1.0 + self._library_copies.get(kind, 0.0)) * payload_bytes

    def _update_s(self, states: Iterable[LocalParameter]) -> float:
        """Seconds of the update, and of what is sent for it to the ranks that update parameters whole, and back."""
        states = tuple(states)
        own_s = self._machine.moved_s(sum(state.update_bytes for state in states))
        return own_s + sum(map(self._products_s, states)) + sum(map(self._exchanged_s, states))

    def _products_s(self, state: LocalParameter) -> float:
        """Of the products of a rule, as large as the parameter would be as a square matrix."""
        if not state.trained or not state.rule.flop:
            return 0.0
        side = sqrt(state.whole_elements)
        count = state.rule.flop * state.updated_elements / (2 * side**3)
        work = product(count, side, side, side)
        return self._machine.work_s(Kernel("aten.mm", state.rule.product_type, 0.0, work))

    def _exchanged_s(self, state: LocalParameter) -> float:
        """A share of rounds that are full: of value and gradient to owners, and of the value back."""
        if not state.is_owned:
            return 0.0
        ranks = Axis("", state.devices, 1)
        stays = 1 - 1 / state.devices  # what a rank gives itself is a part of what an all-to-all takes
        return sum(
            self._machine.collective_s("all_to_all", full_bytes, ranks) * sent_bytes / stays / full_bytes
            for full_bytes, sent_bytes in ((2 * ROUND_BYTES, state.brought_bytes), (ROUND_BYTES, state.given_bytes))
        )

    def _update_bytes(self, states: Iterable[LocalParameter]) -> float:
        """What is there only while parameters are updated: temporaries of all at once on a GPU (those of one, as on a
        processor, are nothing beside activations), and what owners have whole."""
        spare = 1.0 if self._at_once else 0.0
        return sum(spare * state.rule.spare * state.updated_bytes + state.owned_bytes for state in states)

    def _settled(
        self, states: tuple[LocalParameter, ...], sends: int, repeated: tuple[Nearer, ...], border: Axis
    ) -> Iterator[Repeated]:
        """What each repeated parameter takes off, beside those of nearer layers: parameters are synchronised together,
        so the last one to go takes the latency of a collective with it. Where the backward of the nearer layer reads no
        values, this layer gathers them."""
        left = dict(enumerate(states))
        before = self._sent_s(states[:sends], states)
        for one in repeated:
            state = left.pop(one.place)
            after = self._sent_s([left[place] for place in left if place < sends], left.values())
            yield Repeated(
                layer=one.layer,
                backward_gather_s=before.backward_gather_s - after.backward_gather_s if one.gathered else 0.0,
                reduce_s=before.reduce_s - after.reduce_s,
                state=state.kept,
                late_bytes=state.late_bytes,
                update_bytes=self._update_bytes([state]),
                sync_s=before.sync_s - after.sync_s,
                publish_s=before.publish_s - after.publish_s,
                bucket_bytes=state.bucket_bytes,
                update_s=self._update_s([state]),
                across_s=self._across_s(state, border),
            )
            before = after

    def _across_s(self, state: LocalParameter, border: Axis) -> float:
        """Seconds in which the gradient of a parameter is summed over the stages that share it."""
        return self._machine.collective_s("all_reduce", state.trained_bytes, border) if state.trained else 0.0

    def _sent_s(self, own: Iterable[LocalParameter], trained: Iterable[LocalParameter]) -> Sent:
        """Seconds of the collectives of `own` in each micro-batch, and of `trained` once per step, where those of one
        level are in buckets of their own."""
        each = state_collectives(own)
        gathers = [event for event in each.backward if event.kind == "all_gather"]
        sums = [event for event in each.backward if event.kind != "all_gather"]
        by_level: dict[int, list[LocalParameter]] = defaultdict(list)
        for state in trained:
            by_level[state.level].append(state)
        sync_s = publish_s = start_s = 0.0
        for states in by_level.values():
            once, buckets = state_collectives(states), sum(state.bucket_bytes for state in states) / BUCKET_BYTES
            start_s += self._seconds(once.step, 0.0)
            if buckets:  # as a part of a full one, or as several
                sync_s += self._seconds(once.step, 1 / buckets) * buckets
                publish_s += self._seconds(once.update, 1 / buckets) * buckets
            else:
                publish_s += self._seconds(once.update)
        return Sent(
            forward_gather_s=self._seconds(each.forward),
            backward_gather_s=self._seconds(gathers),
            reduce_s=self._seconds(sums),
            sync_s=sync_s,
            publish_s=publish_s,
            start_s=start_s,
        )

    def _seconds(self, events: Iterable[CollectiveCall], share: float = 1.0) -> float:
        return sum(
            self._machine.collective_s(event.kind, event.payload_bytes(1) * share, event.axis) for event in events
        )
