"""The cost model of a program on a cluster, read off its sharded graphs."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import replace
from functools import cached_property, partial
from operator import attrgetter, itemgetter
from typing import Any, TypedDict, TypeVar

import numpy as np

from galvatron.costs.borders import Borders
from galvatron.costs.columns import firsts, stacked, taken
from galvatron.costs.composed import Layer as LocalLayer
from galvatron.costs.conversions import Conversions
from galvatron.costs.events import Linear, Profile, collectives_s, kernels_s
from galvatron.costs.local import LocalClass, local_class, trained_graph
from galvatron.costs.model import CostModel, LayerCost
from galvatron.costs.overlap import arranged, arrangement_that_pays
from galvatron.costs.parameters import HeldState, Nearer, ParameterCosts, PlainState
from galvatron.costs.parts import End, Parameters, Passes, beside, passes_of
from galvatron.costs.profile import Doing, profile_graph, profile_layer
from galvatron.costs.state import LocalParameter, local_parameter
from galvatron.errors import StrategyError
from galvatron.ir.cluster import Cluster
from galvatron.ir.graph import Value
from galvatron.ir.layout import Axis
from galvatron.ir.overlap import AS_IT_STANDS, Arrangement
from galvatron.ir.plan import Ties
from galvatron.ir.planned import closings_behind, epilogue, tied_layers
from galvatron.ir.program import Layer, LayerClass, LayerKind, Program
from galvatron.ir.recompute import rereads
from galvatron.ir.skew import EVEN
from galvatron.ir.strategy import WHOLE, Strategy
from galvatron.ir.types import evaluate
from galvatron.machine import Machine
from galvatron.partition import Partitioner

_LOG = logging.getLogger("galvatron")

_Found = TypeVar("_Found")


class _AsRun(TypedDict):
    """How a graph is run that is profiled; see `profile_graph`."""

    kind: str
    compiled: bool
    skew: float


class ShardedCostModel(CostModel):
    """Implements `CostModel` for a clustered program; each pair of class and strategy is sharded and profiled once."""

    def __init__(
        self,
        program: Program,
        cluster: Cluster,
        sharded_for: Cluster | None = None,
        *,
        skew: float = EVEN,
        overlap: bool = True,
    ) -> None:
        """
        Args:
            sharded_for: the cluster whose rates decided how classes are sharded, if another than that which runs them.
            skew: how unevenly rows choose (`galvatron.ir.skew`): costs are those of the rank that has most.
            overlap: whether collectives run beside computation where that pays (`costs.overlap`).
        """
        self.program, self.machine = program, Machine(cluster)
        self.layers = program.planned_layers
        self._partitioner = Partitioner(program, sharded_for or cluster)
        self._overlapped_for = Machine(sharded_for or cluster) if overlap and not program.inductor else None
        self._made_for = self
        self._cache: dict[Hashable, Any] = {}
        self._tied = tied_layers(program)
        self._as_run: _AsRun = {"kind": cluster.device.kind, "compiled": program.inductor, "skew": skew}
        self._profiled = partial(profile_graph, **self._as_run)
        self._parameter_costs = ParameterCosts(self.machine)
        self._epilogue, self._closings = epilogue(program), closings_behind(program)
        held = [self._held(index) for index in range(len(self.layers))]
        self._borders = Borders(program, held, self._partitioner, Conversions(self._profiled, self.machine))

    def under(self, skew: float, *, made_for: float | None = None) -> ShardedCostModel:
        """The costs where rows choose less or more evenly; classes are cut alike, and no such rows cross borders.

        Args:
            made_for: the skew by which a plan says what runs beside what, if another.
        """
        other = copy(self)
        other._made_for = other if made_for in (None, skew) else self.under(made_for)
        other._as_run, other._cache = {**self._as_run, "skew": skew}, {}
        other._profiled = partial(profile_graph, **other._as_run)
        return other

    def tied(self) -> Mapping[str, tuple[int, ...]]:
        return self._tied

    def kinds(self) -> tuple[Hashable, ...]:
        return self._kinds

    def layer(self, index: int, strategy: Strategy, micro_batch: int, ties: Ties) -> LayerCost:
        key = ("layer", self._kinds[index], self._whole_around(index, ties), strategy, micro_batch)
        if key not in self._cache:
            self._cache[key] = self._layer_cost(index, strategy, micro_batch, ties)
        return self._cache[key]

    def under_each(self, index: int, strategies: Sequence[Strategy], micro_batch: int, ties: Ties) -> LayerCost:
        cls = self.layers[index].cls
        passes = _spread(
            strategies,
            attrgetter("axes", "recompute"),
            lambda strategy: self._passes(cls, strategy, micro_batch / strategy.sample_shards, ties),
            stacked,
        )
        own = _spread(
            strategies,
            lambda strategy: (strategy.axes, strategy.zero, strategy.recompute != "none"),
            lambda strategy: self._parameters(index, strategy, ties),
            Parameters.of,
        )
        end = _spread(strategies, attrgetter("axes"), lambda strategy: self._end(index, strategy, ties), stacked)
        return self._together(passes, own, end, micro_batch)

    def conversion_s(self, index: int, before: Strategy, after: Strategy, micro_batch: int) -> float:
        return 0.0 if before.axes == after.axes else self._borders.conversion_s(index, before, after, micro_batch)

    def boundary_bytes(self, index: int, strategy: Strategy, micro_batch: int) -> float:
        return float(sum(size for size, _ in self._borders.sent(index, strategy, micro_batch)))

    def transfer_s(self, index: int, strategy: Strategy, micro_batch: int) -> float:
        return sum(
            self.machine.collective_s("p2p", size, stage_border(strategy)) * (2 if differentiable else 1)
            for size, differentiable in self._borders.sent(index, strategy, micro_batch)
        )

    def shared_bytes(self, strategy: Strategy, micro_batch: int, ties: Ties) -> float:
        key = ("shared", tuple(kept is None for _, kept in ties), strategy.axes, strategy.recompute, micro_batch)
        if key not in self._cache:
            fitting = (cls for cls in self._classes if self._fits(cls, strategy, ties))
            kept = {cls: self._doing(cls, strategy, ties).profile.shared_bytes for cls in fitting}
            sizes: dict[str, float] = {}
            for layer in self.layers:
                for formal, size in kept.get(layer.cls, ()):
                    sizes[self._given[layer.name][formal]] = size(micro_batch / strategy.sample_shards)
            self._cache[key] = sum(sizes.values())
        return self._cache[key]

    def _doing(self, cls: str, strategy: Strategy, ties: Ties) -> Doing:
        """What a layer of a class does, by one of all that do the same."""
        key = ("doing", cls, strategy.axes, strategy.recompute, self._partitioner.whole(cls, ties))
        if key not in self._cache:
            self._cache[key] = self._does(self._local(cls, strategy, ties), cls, strategy, ties)
        return self._cache[key]

    def _does(self, local: LocalLayer, cls: str, strategy: Strategy, ties: Ties) -> Doing:
        """What a layer of a class does as it is cut, or as it is arranged."""
        doing = profile_layer(local, strategy.recompute, **self._as_run)
        doing = self._beside_what_it_reads(doing, cls, strategy, ties)
        as_measured = not self.program.inductor and (self._as_run["skew"] == EVEN or not local.uneven)
        if self.machine.knows_layers and as_measured:
            measured = local_class(self.program, self._partitioner, cls, strategy, ties)
            doing = replace(doing, profile=replace(doing.profile, fingerprint=measured.fingerprint))
            _tell_unmeasured(measured, self.machine)
        return doing

    def _beside_what_it_reads(self, doing: Doing, cls: str, strategy: Strategy, ties: Ties) -> Doing:
        """What a layer does, with what no autograd keeps of what it reads: values without a gradient that a layer
        before it made are there until it has run. Those that autograd does keep are the layer's own where no other
        layer reads them, since they are not there before it."""
        border, profile = self._partitioner.borders[cls], doing.profile
        local, kept = self._local(cls, strategy, ties), {name for name, _ in profile.shared_bytes}
        own = kept & (border.streams - border.differentiable) & self._read_alone[cls]
        if own:
            profile = profile.keeping_alone(own)
            doing = replace(doing, profile=profile)
        given = zip(local.graph.inputs, self.program.class_of[cls].graph.inputs, strict=True)
        untrained = border.streams - border.differentiable
        read = [value for value, formal in given if formal.name in untrained and value.name not in kept]
        if not read:
            return doing
        batch = math.prod(axis.size for axis in local.mesh)
        sizes = [sum(evaluate(value.type.bytes, size) for value in read) for size in (batch, 2 * batch)]
        more = Linear.through((batch, 2 * batch), (sizes[0], sizes[1])) + profile.forward_extra_bytes
        return replace(doing, profile=replace(profile, forward_extra_bytes=more))

    def _local(self, cls: str, strategy: Strategy, ties: Ties) -> LocalLayer:
        """What a rank runs of a class, however much of it is computed again."""
        key = ("local", cls, strategy.axes, self._partitioner.whole(cls, ties))
        if key not in self._cache:
            local = local_class(self.program, self._partitioner, cls, strategy, ties)
            self._cache[key] = LocalLayer.of(local.graph, local.cls.mesh, local.differentiable)
        return self._cache[key]

    def _seconds(self, profile: Profile, batch: float) -> float:
        events = (*profile.forward, *profile.backward)
        return kernels_s(events, self.machine, batch) + collectives_s(events, self.machine, batch)

    def _layer_cost(self, index: int, strategy: Strategy, micro_batch: int, ties: Ties) -> LayerCost:
        passes = self._passes(self.layers[index].cls, strategy, micro_batch / strategy.sample_shards, ties)
        own = self._parameters(index, strategy, ties)
        return self._together(passes, own, self._end(index, strategy, ties), micro_batch)

    def _together(self, passes: Passes, own: Parameters, end: End, micro_batch: int) -> LayerCost:
        """What a layer costs, or many as arrays."""
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
            update_s=own.update_s + end.update_s,
            epilogue_s=end.seconds,
            contention=own.contention,
            repeated=own.repeated,
        )

    def _passes(self, cls: str, strategy: Strategy, batch: float, ties: Ties) -> Passes:
        """What a layer of a class runs in a micro-batch with so many samples of each data-parallel shard."""
        key = ("passes", cls, strategy.axes, strategy.recompute, self._partitioner.whole(cls, ties), batch)
        if key not in self._cache:
            doing, groups = self._doing(cls, strategy, ties), self._local(cls, strategy, ties).groups
            alike = ("passes", doing, tuple(map(self.machine.alike, groups)), batch)
            if alike not in self._cache:
                self._cache[alike] = self._found_passes(cls, strategy, batch, ties)
            self._cache[key] = self._cache[alike]
        return self._cache[key]

    def _found_passes(self, cls: str, strategy: Strategy, batch: float, ties: Ties) -> Passes:
        arrangement = self._made_for._arrangement(cls, strategy, batch, ties)
        doing = self._doing_in(arrangement, cls, strategy, ties)
        groups = arranged(self._local(cls, strategy, ties), arrangement).groups
        return passes_of(doing.on(groups), self.machine, batch)

    def _arrangement(self, cls: str, strategy: Strategy, batch: float, ties: Ties) -> Arrangement:
        """What runs beside collectives of a layer, where that pays."""
        if self._overlapped_for is None:
            return AS_IT_STANDS
        does, local = partial(self._doing_in, cls=cls, strategy=strategy, ties=ties), self._local(cls, strategy, ties)
        return arrangement_that_pays(local, does, strategy.recompute, self._overlapped_for, batch)

    def _doing_in(self, arrangement: Arrangement, cls: str, strategy: Strategy, ties: Ties) -> Doing:
        """What a layer of a class does as it is arranged."""
        if arrangement == AS_IT_STANDS:
            return self._doing(cls, strategy, ties)
        key = ("arranged", cls, strategy.axes, strategy.recompute, self._partitioner.whole(cls, ties), arrangement)
        if key not in self._cache:
            self._cache[key] = self._does(arranged(self._local(cls, strategy, ties), arrangement), cls, strategy, ties)
        return self._cache[key]

    def _parameters(self, index: int, strategy: Strategy, ties: Ties) -> Parameters:
        """What the parameters of a layer cost, and those of its neighbours beside it.

        Neighbours are taken to have the layer's own strategy, where they can have it.
        """
        around, again = self._whole_around(index, ties), strategy.recompute != "none"
        key = ("parameters", self._kinds[index], around, strategy.axes, strategy.zero, again)
        if key not in self._cache:
            held, none = self._held_state(index, strategy, ties), self._parameter_costs.held({})
            before, after = (
                self._held_state(i, strategy, ties) if strategy.zero and self._can_hold(i, strategy, ties) else none
                for i in (index - 1, index + 1)
            )
            sends = len(self._state(self.layers[index], strategy, ties).parameters)
            nearer = tuple(self._nearer(index, held, strategy, ties))
            border = stage_border(strategy)
            self._cache[key] = self._parameter_costs.seconds_and_bytes(held, sends, before, after, nearer, border)
        return self._cache[key]

    def _can_hold(self, index: int, strategy: Strategy, ties: Ties) -> bool:
        """Whether there is a layer of a number, which can have a strategy."""
        there = 0 <= index < len(self.layers)
        return there and all(self._fits(layer.cls, _own(layer, strategy), ties) for layer in self._held(index))

    def _fits(self, cls: str, strategy: Strategy, ties: Ties) -> bool:
        """Whether a class can be cut as a strategy says: others may be that cannot."""
        key = ("fits", cls, strategy.axes, self._partitioner.whole(cls, ties))
        if key not in self._cache:
            try:
                self._partitioner.shard(cls, strategy, ties)
                self._cache[key] = True
            except StrategyError:
                self._cache[key] = False
        return self._cache[key]

    def _nearer(self, index: int, held: HeldState, strategy: Strategy, ties: Ties) -> Iterator[Nearer]:
        """What of the parameters of a layer an earlier layer holds too, those of the last such layer first."""
        places = {name: place for place, name in enumerate(held.parameters)}
        for name, layer in sorted(self._repeated[index].items(), key=itemgetter(1), reverse=True):
            if not self._can_hold(layer, strategy, ties):
                continue
            gathered = self._state(self.layers[layer], strategy, ties).parameters[name].reread
            yield Nearer(places[name], layer, gathered)

    def _whole_around(self, index: int, ties: Ties) -> tuple[tuple[str, ...], ...]:
        """The state that is whole of a layer and its neighbours: their parameters are on the way while it runs."""
        key = ("around", index, ties)
        if key not in self._cache:
            around = range(max(0, index - 1), min(len(self.layers), index + 2))
            self._cache[key] = tuple(
                self._partitioner.whole(layer.cls, ties) for i in around for layer in self._held(i)
            )
        return self._cache[key]

    def _held(self, index: int) -> tuple[Layer, ...]:
        """A planned layer, with what makes new values of state of its sums, and the epilogue if it is the last."""
        layer, is_last = self.layers[index], index == len(self.layers) - 1
        return layer, *self._closings.get(layer.name, ()), *(self._epilogue if is_last else ())

    def _end(self, index: int, strategy: Strategy, ties: Ties) -> End:
        """What layers that run behind the micro-batches cost beside a planned layer."""
        held = self._held(index)[1:]
        if not held:
            return End()
        key = ("end", *((layer.cls, self._partitioner.whole(layer.cls, ties)) for layer in held), strategy.axes)
        if key not in self._cache:
            last = self._epilogue if index == len(self.layers) - 1 else ()
            ends = [self._end_of(layer, strategy, ties) for layer in last]
            closings = (self._closing_s(layer) for layer in held if layer not in last)
            self._cache[key] = replace(ends[0] if ends else End(), update_s=sum(closings))
        return self._cache[key]

    def _closing_s(self, layer: Layer) -> float:
        """Seconds of what makes new values of state when a step ends."""
        graph, batch = self._partitioner.shard(layer.cls, WHOLE, ()).graph, self.program.batch_size
        return self._seconds(self._profiled(graph, (), frozenset(), at=batch), batch)

    def _end_of(self, layer: Layer, strategy: Strategy, ties: Ties) -> End:
        batch = self.program.batch_size // strategy.sample_shards
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

    def _held_state(self, index: int, strategy: Strategy, ties: Ties) -> HeldState:
        """What a planned layer holds of state, and behind that what the layers do that run when it is through."""
        states = [self._state(layer, _own(layer, strategy), ties) for layer in self._held(index)]
        if len(states) == 1:
            return states[0]
        every = {name: state for one in (states[0], *reversed(states)) for name, state in one.parameters.items()}
        return self._parameter_costs.held(every, sum(one.other_bytes for one in states))

    def _state(self, layer: Layer, strategy: Strategy, ties: Ties) -> HeldState:
        """What a layer holds of state."""
        first = self._firsts_to_hold[layer.name]
        found = self._first_state(first, strategy, ties)
        if first is layer:
            return found
        return found.named(dict.fromkeys(name for name in layer.state if name in self.program.parameters))

    def _first_state(self, layer: Layer, strategy: Strategy, ties: Ties) -> HeldState:
        """The same of the first layer that holds such state."""
        plain, whole = self._plain_state(layer, strategy, ties), self._partitioner.whole(layer.cls, ties)
        reread = plain.reread if strategy.recompute == "none" else plain.replayed
        key = ("state", layer.name, whole, strategy.axes, strategy.zero, reread)
        if key not in self._cache:
            parameters = {
                name: replace(one.at_level(0 if name in plain.whole else strategy.zero), reread=reread)
                for name, one in plain.parameters.items()
            }
            self._cache[key] = self._parameter_costs.held(parameters, plain.other_bytes)
        return self._cache[key]

    @cached_property
    def _given(self) -> dict[str, dict[str, str]]:
        """For each layer, by its name, the values that it is given for the inputs of its class."""
        inputs = {cls.name: [value.name for value in cls.graph.inputs] for cls in self.program.classes}
        return {layer.name: dict(zip(inputs[layer.cls], layer.operands, strict=True)) for layer in self.layers}

    @cached_property
    def _classes(self) -> tuple[str, ...]:
        """Those of planned layers."""
        return tuple(dict.fromkeys(layer.cls for layer in self.layers))

    @cached_property
    def _read_alone(self) -> dict[str, frozenset[str]]:
        """For each class, its inputs that no layer reads but the one that is given them."""
        readers = Counter(name for layer in (*self.layers, *self._epilogue) for name in set(layer.operands))
        alone: dict[str, frozenset[str]] = {}
        for layer in self.layers:
            formals = (value.name for value in self.program.class_of[layer.cls].graph.inputs)
            given = zip(formals, layer.operands, strict=True)
            own = frozenset(formal for formal, name in given if readers[name] == 1)
            alone[layer.cls] = alone.get(layer.cls, own) & own
        return alone

    @cached_property
    def _firsts_to_hold(self) -> dict[str, Layer]:
        """For each layer, by its name, the first that holds as much of everything."""
        firsts: dict[Hashable, Layer] = {}
        held = [layer for index in range(len(self.layers)) for layer in self._held(index)]
        return {layer.name: firsts.setdefault(self._holding(layer), layer) for layer in held}

    def _holding(self, layer: Layer) -> Hashable:
        """What of a layer says what it holds, whatever that is called."""
        names, states = layer.state, [self.program.state_of[name] for name in layer.state]
        return (
            layer.cls,
            tuple(
                (
                    state.type,
                    state.trainable,
                    state.rule,
                    state.name in self.program.parameters,
                    names.index(state.name),
                    self._is_held_before(layer, state.name),
                )
                for state in states
            ),
            tuple((update.state in names, value.type) for update, value in self.program.updates_in(layer)),
        )

    def _is_held_before(self, layer: Layer, state: str) -> bool:
        """Whether state that is read when a step ends is held by a planned layer."""
        return layer.kind is LayerKind.CLOSING and state in self._held_by_planned

    @cached_property
    def _held_by_planned(self) -> frozenset[str]:
        return frozenset(name for layer in self.layers for name in layer.state)

    def _plain_state(self, layer: Layer, strategy: Strategy, ties: Ties) -> PlainState:
        """What a layer holds of state at ZeRO level 0, where nothing is computed again."""
        whole = self._partitioner.whole(layer.cls, ties)
        key = ("plain", layer.name, whole, strategy.axes)
        if key not in self._cache:
            self._cache[key] = self._found_state(layer, self._partitioner.shard(layer.cls, strategy, ties), whole)
        return self._cache[key]

    def _found_state(self, layer: Layer, sharded: LayerClass, whole: tuple[str, ...]) -> PlainState:
        parameters: dict[str, LocalParameter] = {}
        formals: list[tuple[str, str]] = []
        other_bytes = 0
        for value, name in zip(sharded.graph.state, layer.state, strict=True):
            if name in self.program.parameters:
                parameters[name] = self._local_parameter(name, value, sharded.mesh)
                formals.append((name, value.name))
            elif not self._is_held_before(layer, name):
                other_bytes += evaluate(value.type.bytes, 1)
        for update, value in self.program.updates_in(layer):
            # Its new value waits for the end of the step.
            copies = 1 if update.state in layer.state else 2
            other_bytes += copies * evaluate(value.type.bytes, 1)
        if layer.kind is LayerKind.CLOSING:
            other_bytes += sum(evaluate(value.type.bytes, 1) for value in sharded.graph.inputs)
        differentiable = self._partitioner.borders[layer.cls].differentiable
        own = [formal for _, formal in formals]
        reread, replayed = (rereads(sharded.graph, own, differentiable, how) for how in ("none", "full"))
        kept = frozenset(name for name, formal in formals if formal in whole)
        return PlainState(parameters, other_bytes, reread, replayed, kept)

    def _local_parameter(self, name: str, value: Value, mesh: tuple[Axis, ...]) -> LocalParameter:
        state = self.program.state_of[name]
        return local_parameter(state, value, mesh, 0, self.program.rule_of(state))

    @cached_property
    def _repeated(self) -> tuple[dict[str, int], ...]:
        """For each layer the parameters that an earlier layer holds too, with the last such layer."""
        last: dict[str, int] = {}
        found: list[dict[str, int]] = []
        for index, layer in enumerate(self.layers):
            names = {name for held in self._held(index) for name in held.state}
            found.append({name: at for name, at in last.items() if name in names})
            last.update((name, index) for name in layer.state if name in self.program.parameters)
        return tuple(found)

    @cached_property
    def _kinds(self) -> tuple[int, ...]:
        """For each layer the first one of its kind."""
        return firsts(
            (
                tuple(held.cls for held in self._held(i)),
                self._borders.key(i),
                tuple(self._repeated[i].items()),
                tuple(self.program.state_of[name].rule for held in self._held(i) for name in held.state),
                tuple(held.cls for j in range(max(0, i - 1), min(len(self.layers), i + 2)) for held in self._held(j)),
            )
            for i in range(len(self.layers))
        )


def _spread(
    strategies: Sequence[Strategy],
    told: Callable[[Strategy], Hashable],
    find: Callable[[Strategy], _Found],
    many: Callable[[Sequence[_Found]], _Found],
) -> _Found:
    """What is found of each strategy, as arrays; once for all that are told by the same."""
    found: dict[Hashable, _Found] = {}
    keys = list(map(told, strategies))
    for key, strategy in zip(keys, strategies, strict=True):
        if key not in found:
            found[key] = find(strategy)
    numbers = {key: number for number, key in enumerate(found)}
    return taken(many(list(found.values())), np.array([numbers[key] for key in keys]))


def _own(layer: Layer, strategy: Strategy) -> Strategy:
    """The strategy of a layer that goes with a planned one of another."""
    return WHOLE if layer.kind.is_whole else strategy


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
