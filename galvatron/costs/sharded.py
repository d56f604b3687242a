"""The cost model of a program on a cluster, read off its sharded graphs."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property, partial
from operator import itemgetter
from typing import Any

from galvatron.costs.conversions import Conversions
from galvatron.costs.events import CollectiveCall, Profile, collectives_s, computing_s, kernels_s
from galvatron.costs.local import LocalClass, local_class, trained_graph
from galvatron.costs.memory import Memory
from galvatron.costs.model import LayerCost, Repeated
from galvatron.costs.parts import End, Parameters, Passes, Sent, beside
from galvatron.costs.profile import profile_graph
from galvatron.costs.state import TrainedState, state_collectives, trained_state
from galvatron.ir.cluster import Cluster
from galvatron.ir.collectives import LIBRARY_COPIES
from galvatron.ir.graph import Value
from galvatron.ir.layout import Axis
from galvatron.ir.plan import Ties
from galvatron.ir.planned import epilogue, tied_layers
from galvatron.ir.program import Layer, LayerClass, Program
from galvatron.ir.recompute import rereads
from galvatron.ir.strategy import Strategy
from galvatron.ir.types import evaluate
from galvatron.ir.zero import BUCKET_BYTES
from galvatron.machine import Machine
from galvatron.partition import Partitioner

_LOG = logging.getLogger("galvatron")


class ShardedCostModel:
    """Implements `CostModel` for a clustered program; each pair of class and strategy is sharded and profiled once."""

    def __init__(self, program: Program, cluster: Cluster, sharded_for: Cluster | None = None) -> None:
        """
        Args:
            sharded_for: the cluster whose rates decided how classes are sharded, if another than that which runs them.
        """
        self.program, self.machine = program, Machine(cluster)
        self.layers = program.planned_layers
        self._partitioner = Partitioner(program, sharded_for or cluster)
        self._profiles: dict[Hashable, Profile] = {}
        self._cache: dict[Hashable, Any] = {}
        self._tied = tied_layers(program)
        self._profiled = partial(profile_graph, kind=cluster.device.kind, compiled=program.inductor)
        self._conversions = Conversions(self._profiled, self._seconds)
        self._at_once = cluster.device.kind != "cpu"
        self._library_copies = LIBRARY_COPIES.get(cluster.device.kind, {})

    def tied(self) -> Mapping[str, tuple[int, ...]]:
        return self._tied

    def kinds(self) -> tuple[Hashable, ...]:
        return self._kinds

    def layer(self, index: int, strategy: Strategy, micro_batch: int, ties: Ties) -> LayerCost:
        key = ("layer", self._kinds[index], self._whole_around(index, ties), strategy, micro_batch)
        if key not in self._cache:
            self._cache[key] = self._layer_cost(index, strategy, micro_batch, ties)
        return self._cache[key]

    def conversion_s(self, index: int, before: Strategy, after: Strategy, micro_batch: int) -> float:
        if before.axes == after.axes:
            return 0.0
        key = ("conversion", self._borders[index], before.axes, after.axes, micro_batch)
        if key not in self._cache:
            batch = micro_batch / before.degree("dp")
            self._cache[key] = sum(
                self._conversions.seconds(
                    self._made_at(producer, output, before),
                    self._read_at(consumer, formal, after),
                    batch,
                    differentiable=self._has_gradient(producer, output),
                )
                for producer, output, consumer, formal in self._crossing[index]
            )
        return self._cache[key]

    def boundary_bytes(self, index: int, strategy: Strategy, micro_batch: int) -> float:
        return float(sum(size for size, _ in self._sent(index, strategy, micro_batch)))

    def transfer_s(self, index: int, strategy: Strategy, micro_batch: int) -> float:
        return sum(
            self.machine.collective_s("p2p", size, stage_border(strategy)) * (2 if differentiable else 1)
            for size, differentiable in self._sent(index, strategy, micro_batch)
        )

    def shared_bytes(self, strategy: Strategy, micro_batch: int, ties: Ties) -> float:
        key = ("shared", tuple(kept is None for _, kept in ties), strategy.axes, strategy.recompute, micro_batch)
        if key not in self._cache:
            sizes: dict[str, float] = {}
            for layer in self.layers:
                formals = (v.name for v in self.program.class_of[layer.cls].graph.inputs)
                names = dict(zip(formals, layer.operands, strict=True))
                for formal, size in self._profile(layer.cls, strategy, ties).shared_bytes:
                    sizes[names[formal]] = size(micro_batch / strategy.degree("dp"))
            self._cache[key] = sum(sizes.values())
        return self._cache[key]

    def _profile(self, cls: str, strategy: Strategy, ties: Ties) -> Profile:
        key = cls, strategy.axes, strategy.recompute, self._partitioner.whole(cls, ties)
        if key not in self._profiles:
            local = local_class(self.program, self._partitioner, cls, strategy, ties)
            profile = self._profiled(local.graph, local.cls.mesh, local.differentiable, strategy.recompute)
            if self.machine.knows_layers and not self.program.inductor:  # measured as they run without it
                profile = replace(profile, fingerprint=local.fingerprint)
                _tell_unmeasured(local, self.machine)
            self._profiles[key] = profile
        return self._profiles[key]

    def _bordering(self, cls: str, strategy: Strategy) -> LayerClass:
        """A class as its neighbours see it: what crosses its border is the same however shared parameters are kept."""
        return self._partitioner.shard(cls, strategy, tuple((name, None) for name in self._tied))

    def _seconds(self, profile: Profile, batch: float) -> float:
        events = (*profile.forward, *profile.backward)
        return kernels_s(events, self.machine, batch) + collectives_s(events, self.machine, batch)

    def _layer_cost(self, index: int, strategy: Strategy, micro_batch: int, ties: Ties) -> LayerCost:
        passes = self._passes(self.layers[index].cls, strategy, micro_batch / strategy.degree("dp"), ties)
        own = self._parameters(index, strategy, ties)
        end = self._end(index, strategy, ties)
        return LayerCost(
            forward_s=passes.forward_s,
            backward_s=passes.backward_s + own.accumulated_s,
            forward_host_s=passes.forward_host_s,
            backward_host_s=passes.backward_host_s + own.host_s,
            weight_s=passes.weight_s,
            forward_communication_s=passes.forward_communication_s,
            backward_communication_s=passes.backward_communication_s,
            forward_gather_s=own.sent.forward_gather_s,
            backward_gather_s=own.sent.backward_gather_s,
            reduce_s=own.sent.reduce_s,
            saved_bytes=passes.saved_bytes,
            extra=beside(passes, own, end, several=micro_batch < self.program.batch_size),
            state=own.state,
            late_bytes=own.late_bytes,
            update_bytes=own.update_bytes,
            bucket_bytes=own.bucket_bytes,
            sync_s=own.sent.sync_s,
            publish_s=own.sent.publish_s,
            start_s=own.sent.start_s,
            update_s=own.update_s,
            epilogue_s=end.seconds,
            contention=own.contention,
            repeated=own.repeated,
        )

    def _passes(self, cls: str, strategy: Strategy, batch: float, ties: Ties) -> Passes:
        """What a layer of a class runs in a micro-batch with so many samples of each data-parallel shard."""
        key = ("passes", cls, strategy.axes, strategy.recompute, self._partitioner.whole(cls, ties), batch)
        if key not in self._cache:
            profile, machine = self._profile(cls, strategy, ties), self.machine
            there, back = profile.forward_dispatches, profile.backward_dispatches
            forward_s, backward_s, weight_s = computing_s(profile, machine, batch)
            self._cache[key] = Passes(
                forward_s=forward_s,
                backward_s=backward_s,
                weight_s=weight_s,
                forward_host_s=machine.host_s(there.ops, there.views),
                backward_host_s=machine.host_s(back.ops, back.views, backward=True),
                forward_communication_s=collectives_s(profile.forward, machine, batch),
                backward_communication_s=collectives_s(profile.backward, machine, batch),
                saved_bytes=profile.saved_bytes(batch),
                forward_extra_bytes=profile.forward_extra_bytes(batch),
                backward_extra_bytes=profile.backward_extra_bytes(batch),
                summing_extra_bytes=profile.summing_extra_bytes(batch),
            )
        return self._cache[key]

    def _parameters(self, index: int, strategy: Strategy, ties: Ties) -> Parameters:
        """What the parameters of a layer cost, and those of its neighbours beside it.

        Neighbours are taken to have the layer's own strategy.
        """
        around, again = self._whole_around(index, ties), strategy.recompute != "none"
        key = ("parameters", self._kinds[index], around, strategy.axes, strategy.zero, again)
        if key not in self._cache:
            own, _ = self._state(self.layers[index], strategy, ties)
            trained, other_bytes = self._held_state(index, strategy, ties)
            states = list(trained.values())
            before, after = (
                list(self._held_state(i, strategy, ties)[0].values())
                if strategy.zero and 0 <= i < len(self.layers)
                else []
                for i in (index - 1, index + 1)
            )
            self._cache[key] = Parameters(
                sent=self._sent_s(own, trained),
                accumulated_s=self.machine.moved_s(sum(state.accumulation_bytes for state in states)),
                host_s=self.machine.host_s(len(states), 0, backward=True),
                state=sum((one.kept for one in states), Memory(buffers=other_bytes)),
                late_bytes=sum(one.late_bytes for one in states),
                update_bytes=self._update_bytes(states),
                bucket_bytes=sum(one.bucket_bytes for one in states),
                update_s=self._update_s(states),
                contention=self.machine.contention(axis for one in states for axis in one.axes),
                repeated=tuple(self._settled(own, trained, self._repeated(index), strategy, ties)),
                gathered_bytes=sum(one.gathered_bytes for one in states) if strategy.zero else 0.0,
                regathered_bytes=sum(one.regathered_bytes for one in states) if strategy.zero else 0.0,
                summed_bytes=sum(one.summed_bytes for one in states) if strategy.zero else 0.0,
                arriving_bytes=sum(self._arriving_bytes(one) for one in after),
                returning_bytes=sum(self._arriving_bytes(one) for one in before if one.reread),
                leaving_bytes=self._with_copies("reduce_scatter", sum(one.summed_bytes for one in after)),
                leaving_added_bytes=sum(one.added_bytes for one in after),
            )
        return self._cache[key]

    def _arriving_bytes(self, state: TrainedState) -> float:
        """Bytes in use while the values of a parameter are gathered."""
        return self._with_copies("all_gather", state.gathered_bytes) + state.cast_bytes

    def _with_copies(self, kind: str, payload_bytes: float) -> float:
        """Bytes in use while a collective is under way."""
        return (1.0 + self._library_copies.get(kind, 0.0)) * payload_bytes

    def _whole_around(self, index: int, ties: Ties) -> tuple[tuple[str, ...], ...]:
        """The state that is whole of a layer and its neighbours: their parameters are on the way while it runs."""
        around = range(max(0, index - 1), min(len(self.layers), index + 2))
        return tuple(self._partitioner.whole(layer.cls, ties) for i in around for layer in self._held(i))

    def _held(self, index: int) -> tuple[Layer, ...]:
        """A planned layer, with the epilogue if it is the last."""
        return (self.layers[index], *(epilogue(self.program) if index == len(self.layers) - 1 else ()))

    def _end(self, index: int, strategy: Strategy, ties: Ties) -> End:
        """What the epilogue costs beside the last layer, and nothing beside any other."""
        held = self._held(index)[1:]
        if not held:
            return End()
        key = ("end", self._partitioner.whole(held[0].cls, ties), strategy.axes)
        if key not in self._cache:
            self._cache[key] = self._end_of(held[0], strategy, ties)
        return self._cache[key]

    def _end_of(self, layer: Layer, strategy: Strategy, ties: Ties) -> End:
        batch = self.program.batch_size // strategy.degree("dp")
        sharded = self._partitioner.shard(layer.cls, strategy, ties)
        border = self._partitioner.borders[layer.cls]
        differentiable = border.differentiable
        graph = trained_graph(sharded.graph, self.program.class_of[layer.cls].graph, border)
        profile = self._profiled(graph, sharded.mesh, differentiable, at=batch)
        made = {name for one in self.layers for name in one.results}
        entering = [v for v, name in zip(sharded.graph.inputs, layer.operands, strict=True) if name in made]
        sizes = {value.name: evaluate(value.type.bytes, batch) for value in entering}
        extra_bytes = max(profile.forward_extra_bytes(batch), profile.backward_extra_bytes(batch))
        return End(
            self._seconds(profile, batch),
            sum(sizes.values()) + profile.saved_bytes(batch) + extra_bytes,
            sum(size for name, size in sizes.items() if name in differentiable),
        )

    def _held_state(self, index: int, strategy: Strategy, ties: Ties) -> tuple[dict[str, TrainedState], int]:
        """As `_state`, of a planned layer with its epilogue."""
        trained, other_bytes = self._state(self.layers[index], strategy, ties)
        for extra in self._held(index)[1:]:
            of_end, more_bytes = self._state(extra, strategy, ties)
            trained, other_bytes = {**of_end, **trained}, other_bytes + more_bytes
        return trained, other_bytes

    def _state(self, layer: Layer, strategy: Strategy, ties: Ties) -> tuple[dict[str, TrainedState], int]:
        """What each trained parameter costs, and the bytes of other state and of its new values."""
        sharded = self._partitioner.shard(layer.cls, strategy, ties)
        whole = self._partitioner.whole(layer.cls, ties)
        formals = zip(sharded.graph.state, layer.state, strict=True)
        values = [value.name for value, name in formals if self.program.state_of[name].trainable]
        reread = rereads(sharded.graph, values, strategy.recompute)
        trained: dict[str, TrainedState] = {}
        other_bytes = 0
        for value, name in zip(sharded.graph.state, layer.state, strict=True):
            state = self.program.state_of[name]
            if state.trainable:
                level = 0 if value.name in whole else strategy.zero
                trained[name] = trained_state(state, value, sharded.mesh, level, reread=reread)
            else:
                other_bytes += evaluate(value.type.bytes, 1)
        for update, value in self.program.updates_in(layer):
            # Its new value waits for the end of the step.
            copies = 1 if update.state in layer.state else 2
            other_bytes += copies * evaluate(value.type.bytes, 1)
        return trained, other_bytes

    def _update_s(self, states: Iterable[TrainedState]) -> float:
        return self.machine.moved_s(sum(state.update_bytes for state in states))

    def _update_bytes(self, states: Iterable[TrainedState]) -> float:
        """What `torch.optim.AdamW` takes while it updates: on a GPU the square roots of all second moments at once, on
        a processor those of one parameter, which is nothing beside activations."""
        return sum(state.trained_bytes for state in states) if self._at_once else 0.0

    def _settled(
        self,
        own: Mapping[str, TrainedState],
        trained: Mapping[str, TrainedState],
        repeated: Mapping[str, int],
        strategy: Strategy,
        ties: Ties,
    ) -> Iterator[Repeated]:
        """What each repeated parameter takes off, beside those of nearer layers: parameters are synchronised together,
        so the last one to go takes the latency of a collective with it. Where the backward of the nearer layer reads no
        values, this layer gathers them.

        Args:
            own: what the layer itself trains, and sends for in each micro-batch.
            trained: that and what its epilogue trains, synchronised once per step.
        """
        own, trained = dict(own), dict(trained)
        before = self._sent_s(own, trained)
        for name, layer in sorted(repeated.items(), key=itemgetter(1), reverse=True):
            state = trained.pop(name)
            own.pop(name, None)
            after = self._sent_s(own, trained)
            gathered = self._state(self.layers[layer], strategy, ties)[0][name].reread
            yield Repeated(
                layer=layer,
                backward_gather_s=before.backward_gather_s - after.backward_gather_s if gathered else 0.0,
                reduce_s=before.reduce_s - after.reduce_s,
                state=state.kept,
                late_bytes=state.late_bytes,
                update_bytes=self._update_bytes([state]),
                sync_s=before.sync_s - after.sync_s,
                publish_s=before.publish_s - after.publish_s,
                bucket_bytes=state.bucket_bytes,
                update_s=self._update_s([state]),
                across_s=self.machine.collective_s("all_reduce", state.trained_bytes, stage_border(strategy)),
            )
            before = after

    def _sent_s(self, own: Mapping[str, TrainedState], trained: Mapping[str, TrainedState]) -> Sent:
        """Seconds of the collectives of `own` in each micro-batch, and of `trained` once per step, where those of one
        level are in buckets of their own."""
        each = state_collectives(own.values())
        gathers = [event for event in each.backward if event.kind == "all_gather"]
        sums = [event for event in each.backward if event.kind != "all_gather"]

        def seconds(events: Iterable[CollectiveCall], share: float = 1.0) -> float:
            return sum(
                self.machine.collective_s(event.kind, event.payload_bytes(1) * share, event.axis) for event in events
            )

        by_level: dict[int, list[TrainedState]] = defaultdict(list)
        for state in trained.values():
            by_level[state.level].append(state)
        sync_s = publish_s = start_s = 0.0
        for states in by_level.values():
            once, buckets = state_collectives(states), sum(state.bucket_bytes for state in states) / BUCKET_BYTES
            start_s += seconds(once.step, 0.0)
            if buckets:  # as a part of a full one, or as several
                sync_s += seconds(once.step, 1 / buckets) * buckets
                publish_s += seconds(once.update, 1 / buckets) * buckets
            else:
                publish_s += seconds(once.update)
        return Sent(
            forward_gather_s=seconds(each.forward),
            backward_gather_s=seconds(gathers),
            reduce_s=seconds(sums),
            sync_s=sync_s,
            publish_s=publish_s,
            start_s=start_s,
        )

    def _repeated(self, index: int) -> dict[str, int]:
        """The trained parameters of a layer that an earlier layer holds too, with the last such layer."""
        return {
            name: earlier
            for earlier in range(index)
            for name in self.layers[earlier].state
            if any(name in held.state for held in self._held(index)) and self.program.state_of[name].trainable
        }

    @cached_property
    def _kinds(self) -> tuple[int, ...]:
        """For each layer the first one of its kind."""
        return _firsts(
            (
                tuple(held.cls for held in self._held(i)),
                self._live_key(i),
                tuple(self._repeated(i).items()),
                tuple(held.cls for j in range(max(0, i - 1), min(len(self.layers), i + 2)) for held in self._held(j)),
            )
            for i in range(len(self.layers))
        )

    @cached_property
    def _crossing(self) -> tuple[tuple[tuple[int, str, str, str], ...], ...]:
        """Per border before each layer, and after the last, the values alive there: (producer by index, its output,
        class of the next consumer, its input)."""
        made: dict[str, tuple[int, str]] = {}
        uses: dict[str, list[tuple[int, str, str]]] = defaultdict(list)
        for i, layer in ((index, layer) for index in range(len(self.layers)) for layer in self._held(index)):
            graph = self.program.class_of[layer.cls].graph
            for name, value in zip(layer.operands, graph.inputs, strict=True):
                uses[name].append((i, layer.cls, value.name))
            made.update((name, (i, output)) for name, output in zip(layer.results, graph.outputs, strict=True))
        return tuple(
            tuple(
                (*made[name], *next(use[1:] for use in places if use[0] >= border))
                for name, places in uses.items()
                if name in made and made[name][0] < border <= places[-1][0]
            )
            for border in range(len(self.layers) + 1)
        )

    def _live_key(self, index: int) -> Hashable:
        return tuple(
            (self.layers[producer].cls, output, consumer, formal)
            for producer, output, consumer, formal in self._crossing[index]
        )

    @cached_property
    def _borders(self) -> tuple[int, ...]:
        """For each border the first one that the same values cross."""
        return _firsts(map(self._live_key, range(len(self.layers) + 1)))

    def _output(self, producer: int, output: str, strategy: Strategy) -> tuple[Value, LayerClass]:
        """A result of a layer under a strategy, with the sharded class it is in."""
        sharded = self._bordering(self.layers[producer].cls, strategy)
        position = self.program.class_of[self.layers[producer].cls].graph.outputs.index(output)
        return sharded.graph.values[sharded.graph.outputs[position]], sharded

    def _sent(self, index: int, strategy: Strategy, micro_batch: int) -> list[tuple[float, bool]]:
        """Bytes per device of each value alive before layer `index`, and whether it has a gradient."""
        key = ("sent", self._borders[index], strategy.axes, micro_batch)
        if key not in self._cache:
            batch = micro_batch // strategy.degree("dp")
            self._cache[key] = [
                (
                    float(evaluate(self._output(producer, output, strategy)[0].type.bytes, batch)),
                    self._has_gradient(producer, output),
                )
                for producer, output, _, _ in self._crossing[index]
            ]
        return self._cache[key]

    def _has_gradient(self, producer: int, output: str) -> bool:
        layer = self.layers[producer]
        outputs = self.program.class_of[layer.cls].graph.outputs
        return self._partitioner.differentiable(layer.results[outputs.index(output)])

    def _made_at(self, producer: int, output: str, strategy: Strategy) -> int:
        """How a value lies where a layer makes it."""
        key = ("made", self.layers[producer].cls, output, strategy.axes)
        if key not in self._cache:
            value, cls = self._output(producer, output, strategy)
            self._cache[key] = self._conversions.place(value, cls.mesh)
        return self._cache[key]

    def _read_at(self, cls: str, formal: str, strategy: Strategy) -> int:
        """How a value lies where a layer of a class reads it."""
        key = ("read", cls, formal, strategy.axes)
        if key not in self._cache:
            sharded = self._bordering(cls, strategy)
            self._cache[key] = self._conversions.place(sharded.graph.values[formal], sharded.mesh)
        return self._cache[key]


def _firsts(keys: Iterable[Hashable]) -> tuple[int, ...]:
    """For each key the position of the first that is equal."""
    found: dict[Hashable, int] = {}
    return tuple(found.setdefault(key, position) for position, key in enumerate(keys))


def stage_border(strategy: Strategy) -> Axis:
    """The two pipeline ranks on both sides of a stage border, as an axis of their devices."""
    return Axis("pp", 2, strategy.devices)


def _tell_unmeasured(local: LocalClass, machine: Machine) -> None:
    """Logs that a layer was not among those that were measured."""
    if machine.layer_s(local.fingerprint, 1) is None:
        _LOG.info(
            "%s is priced by its kernels: no measured layer computes what a rank does of it (%s)",
            local.cls.name,
            local.fingerprint,
        )
