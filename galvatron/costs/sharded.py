"""The cost model of a program on a cluster, read off its sharded graphs."""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from operator import itemgetter
from typing import Any

from galvatron.costs.events import CollectiveCall, Profile, collectives_s, computing_s, kernels_s
from galvatron.costs.local import LocalClass, local_class, trained_graph
from galvatron.costs.memory import Memory
from galvatron.costs.model import LayerCost, Repeated
from galvatron.costs.profile import profile_graph
from galvatron.costs.state import TrainedState, state_collectives, trained_state
from galvatron.errors import GalvatronError
from galvatron.ir.cluster import Cluster
from galvatron.ir.collectives import LIBRARY_COPIES
from galvatron.ir.graph import Value
from galvatron.ir.layout import Axis
from galvatron.ir.plan import Ties
from galvatron.ir.planned import epilogue, tied_layers
from galvatron.ir.program import Layer, LayerClass, Program
from galvatron.ir.strategy import Strategy
from galvatron.ir.types import evaluate
from galvatron.ir.zero import BUCKET_BYTES
from galvatron.machine import Machine
from galvatron.partition import Partitioner, Redistribution, redistribution

_LOG = logging.getLogger("galvatron")


@dataclass(frozen=True)
class _End:
    """An epilogue: its seconds, the most memory that it takes, and the bytes of the gradients that it hands back."""

    seconds: float = 0.0
    peak_bytes: float = 0.0
    gradient_bytes: float = 0.0


@dataclass(frozen=True)
class _Sent:
    """Seconds of the collectives of parameters, by themselves; see `LayerCost`."""

    forward_gather_s: float
    backward_gather_s: float
    reduce_s: float
    sync_s: float
    publish_s: float
    start_s: float


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
        self._at_once = cluster.device.kind != "cpu"
        self._library_copies = LIBRARY_COPIES.get(cluster.device.kind, {})

    def tied(self) -> Mapping[str, tuple[int, ...]]:
        return self._tied

    def kinds(self) -> tuple[Hashable, ...]:
        return self._kinds

    def layer(self, index: int, strategy: Strategy, micro_batch: int, ties: Ties) -> LayerCost:
        # Neighbours count too: their parameters are on the way while the layer runs.
        around = range(max(0, index - 1), min(len(self.layers), index + 2))
        whole = tuple(self._partitioner.whole(layer.cls, ties) for i in around for layer in self._held(i))
        key = ("layer", self._kinds[index], whole, strategy, micro_batch)
        if key not in self._cache:
            self._cache[key] = self._layer_cost(index, strategy, micro_batch, ties)
        return self._cache[key]

    def conversion_s(self, index: int, before: Strategy, after: Strategy, micro_batch: int) -> float:
        if before.axes == after.axes:
            return 0.0
        key = ("conversion", self._live_key(index), before, after, micro_batch)
        if key not in self._cache:
            batch = micro_batch / before.degree("dp")
            profiles = self._conversion(index, before, after)
            self._cache[key] = (
                math.inf
                if profiles is None
                else sum(self._seconds(profile, batch / shares) for profile, shares in profiles)
            )
        return self._cache[key]

    def boundary_bytes(self, index: int, strategy: Strategy, micro_batch: int) -> float:
        return float(sum(size for size, _ in self._sent(index, strategy, micro_batch)))

    def transfer_s(self, index: int, strategy: Strategy, micro_batch: int) -> float:
        return sum(
            self.machine.collective_s("p2p", size, _stage_border(strategy)) * (2 if differentiable else 1)
            for size, differentiable in self._sent(index, strategy, micro_batch)
        )

    def shared_bytes(self, strategy: Strategy, micro_batch: int, ties: Ties) -> float:
        key = ("shared", tuple(kept is None for _, kept in ties), strategy, micro_batch)
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
        key = cls, Strategy(strategy.axes, recompute=strategy.recompute), self._partitioner.whole(cls, ties)
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
        layer, machine = self.layers[index], self.machine
        batch = micro_batch / strategy.degree("dp")
        profile = self._profile(layer.cls, strategy, ties)
        own, _ = self._state(layer, strategy, ties)
        end, (trained, other_bytes) = self._end(index, strategy, ties), self._held_state(index, strategy, ties)
        sent = self._sent_s(own, trained)
        accumulation_bytes = sum(state.accumulation_bytes for state in trained.values())
        there, back = profile.forward_dispatches, profile.backward_dispatches
        forward_s, backward_s, weight_s = computing_s(profile, machine, batch)
        return LayerCost(
            forward_s=forward_s,
            backward_s=backward_s + machine.moved_s(accumulation_bytes),
            forward_host_s=machine.host_s(there.ops, there.views),
            backward_host_s=machine.host_s(back.ops + len(trained), back.views, backward=True),
            weight_s=weight_s,
            forward_communication_s=collectives_s(profile.forward, machine, batch),
            backward_communication_s=collectives_s(profile.backward, machine, batch),
            forward_gather_s=sent.forward_gather_s,
            backward_gather_s=sent.backward_gather_s,
            reduce_s=sent.reduce_s,
            saved_bytes=profile.saved_bytes(batch),
            extra=self._beside(index, strategy, ties, profile, micro_batch, end),
            state=sum((one.kept for one in trained.values()), Memory(buffers=other_bytes)),
            late_bytes=sum(one.late_bytes for one in trained.values()),
            update_bytes=self._update_bytes(trained.values()),
            bucket_bytes=sum(state.bucket_bytes for state in trained.values()),
            sync_s=sent.sync_s,
            publish_s=sent.publish_s,
            start_s=sent.start_s,
            update_s=self._update_s(trained.values()),
            epilogue_s=end.seconds,
            contention=machine.contention(axis for state in trained.values() for axis in state.axes),
            repeated=tuple(self._settled(own, trained, self._repeated(index), strategy)),
        )

    def _beside(
        self, index: int, strategy: Strategy, ties: Ties, profile: Profile, micro_batch: int, end: _End
    ) -> Memory:
        """What a layer takes at its worst moment beside all state and what is kept of it for the backward.

        Under ZeRO, parameters of a neighbour are on their way meanwhile: the values of the layer that runs next, and
        the gradients of the one that ran before. Neighbours are taken to have the layer's own strategy.
        """
        batch = micro_batch / strategy.degree("dp")
        before, own, after = (
            list(self._held_state(i, strategy, ties)[0].values()) if strategy.zero and 0 <= i < len(self.layers) else []
            for i in (index - 1, index, index + 1)
        )

        def under_way(kind: str) -> float:
            return 1.0 + self._library_copies.get(kind, 0.0)

        def fetched(neighbour: list[TrainedState]) -> float:
            arriving_bytes = sum(under_way("all_gather") * n.gathered_bytes + n.cast_bytes for n in neighbour)
            return sum(one.gathered_bytes for one in own) + arriving_bytes

        several = micro_batch < self.program.batch_size
        summed_bytes = sum(one.summed_bytes for one in own)
        leaving_bytes = under_way("reduce_scatter") * sum(one.summed_bytes for one in after)
        leaving_bytes += sum(one.added_bytes for one in after) if several else 0.0
        moments = (
            Memory(working=profile.forward_extra_bytes(batch) + end.gradient_bytes, communication=fetched(after)),
            Memory(
                working=profile.backward_extra_bytes(batch) + end.gradient_bytes,
                communication=fetched(before) + leaving_bytes,
            ),
            Memory(
                working=profile.summing_extra_bytes(batch) + end.gradient_bytes,
                communication=fetched(before) + leaving_bytes + summed_bytes,
            ),
            Memory(working=end.peak_bytes),
        )
        return max(moments, key=lambda moment: moment.total)

    def _held(self, index: int) -> tuple[Layer, ...]:
        """A planned layer, with the epilogue if it is the last."""
        return (self.layers[index], *(epilogue(self.program) if index == len(self.layers) - 1 else ()))

    def _end(self, index: int, strategy: Strategy, ties: Ties) -> _End:
        """What the epilogue costs beside the last layer, and nothing beside any other."""
        held = self._held(index)[1:]
        if not held:
            return _End()
        key = ("end", self._partitioner.whole(held[0].cls, ties), strategy.axes)
        if key not in self._cache:
            self._cache[key] = self._end_of(held[0], strategy, ties)
        return self._cache[key]

    def _end_of(self, layer: Layer, strategy: Strategy, ties: Ties) -> _End:
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
        return _End(
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
        trained: dict[str, TrainedState] = {}
        other_bytes = 0
        for value, name in zip(sharded.graph.state, layer.state, strict=True):
            state = self.program.state_of[name]
            if state.trainable:
                level = 0 if value.name in whole else strategy.zero
                trained[name] = trained_state(state, value, sharded.mesh, level)
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
    ) -> Iterator[Repeated]:
        """What each repeated parameter takes off, beside those of nearer layers: parameters are synchronised together,
        so the last one to go takes the latency of a collective with it.

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
            yield Repeated(
                layer=layer,
                backward_gather_s=before.backward_gather_s - after.backward_gather_s,
                reduce_s=before.reduce_s - after.reduce_s,
                state=state.kept,
                late_bytes=state.late_bytes,
                update_bytes=self._update_bytes([state]),
                sync_s=before.sync_s - after.sync_s,
                publish_s=before.publish_s - after.publish_s,
                bucket_bytes=state.bucket_bytes,
                update_s=self._update_s([state]),
                across_s=self.machine.collective_s("all_reduce", state.trained_bytes, _stage_border(strategy)),
            )
            before = after

    def _sent_s(self, own: Mapping[str, TrainedState], trained: Mapping[str, TrainedState]) -> _Sent:
        """Seconds of the collectives of `own` in each micro-batch, and of `trained` once per step."""
        each, once = state_collectives(own.values()), state_collectives(trained.values())
        bucket_bytes = sum(state.bucket_bytes for state in trained.values())
        gathers = [event for event in each.backward if event.kind == "all_gather"]
        sums = [event for event in each.backward if event.kind != "all_gather"]

        def seconds(events: Iterable[CollectiveCall], share: float = 1.0) -> float:
            return sum(
                self.machine.collective_s(event.kind, event.payload_bytes(1) * share, event.axis) for event in events
            )

        def in_buckets(events: Sequence[CollectiveCall]) -> float:
            """As a part of full buckets, or as several."""
            return seconds(events, BUCKET_BYTES / bucket_bytes) * bucket_bytes / BUCKET_BYTES if bucket_bytes else 0.0

        return _Sent(
            forward_gather_s=seconds(each.forward),
            backward_gather_s=seconds(gathers),
            reduce_s=seconds(sums),
            sync_s=in_buckets(once.step),
            publish_s=in_buckets(once.update) if once.step else seconds(once.update),
            start_s=seconds(once.step, 0.0),
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
    def _kinds(self) -> tuple[Hashable, ...]:
        return tuple(
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

    def _output(self, producer: int, output: str, strategy: Strategy) -> tuple[Value, LayerClass]:
        """A result of a layer under a strategy, with the sharded class it is in."""
        sharded = self._bordering(self.layers[producer].cls, strategy)
        position = self.program.class_of[self.layers[producer].cls].graph.outputs.index(output)
        return sharded.graph.values[sharded.graph.outputs[position]], sharded

    def _sent(self, index: int, strategy: Strategy, micro_batch: int) -> list[tuple[float, bool]]:
        """Bytes per device of each value alive before layer `index`, and whether it has a gradient."""
        key = ("sent", self._live_key(index), strategy, micro_batch)
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

    def _conversion(self, index: int, before: Strategy, after: Strategy) -> list[tuple[Profile, float]] | None:
        """Profiles of the graphs that convert what is alive before a layer; None if the meshes do not nest.

        With each the number of its shares (what `b` counts in it) that make a share of the layer before.
        """
        key = ("profiles", self._live_key(index), before, after)
        if key not in self._cache:
            try:
                self._cache[key] = [
                    (
                        self._profiled(
                            step.cls.graph, step.cls.mesh, frozenset("x") if differentiable else frozenset()
                        ),
                        float(step.shares),
                    )
                    for step, differentiable in self._converting(index, before, after)
                ]
            except GalvatronError:
                self._cache[key] = None
        return self._cache[key]

    def _converting(self, index: int, before: Strategy, after: Strategy) -> list[tuple[Redistribution, bool]]:
        found: list[tuple[Redistribution, bool]] = []
        for producer, output, consumer, formal in self._crossing[index]:
            value, source = self._output(producer, output, before)
            target = self._bordering(consumer, after)
            differentiable = self._has_gradient(producer, output)
            converting = redistribution(
                f"{before} to {after}",
                (value, source.mesh),
                (target.graph.values[formal], target.mesh),
                differentiable=differentiable,
            )
            if converting is not None:
                found.append((converting, differentiable))
        return found


def _stage_border(strategy: Strategy) -> Axis:
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
