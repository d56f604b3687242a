"""What sharding left whole: ops that every rank of a mesh axis runs at full size, why, and what that costs.

An op is whole on an axis when none of its operands and results is sharded there. Partial sums do not make it less work:
a `cumsum` of padded shards runs on every rank at the size of the whole.

Seconds are those of the cost model: every op is run by itself on fake tensors (`profile_graph`), at the plan's
micro-batch. Recomputation is not among them. An axis would take its share of an op's arithmetic and memory traffic, but
of no launch, and what it would add in communication is not deducted: the seconds saved are an upper bound. An op by
itself gets a gradient of full size where a class may have an expanded number (after a sum), so the seconds of a class
whose ops are all whole may be a little less than those of its ops.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from galvatron.errors import GalvatronError
from galvatron.ir.cluster import Cluster
from galvatron.ir.graph import Graph, Op
from galvatron.ir.layout import Axis, Layout, Shard
from galvatron.ir.program import Form, LayerClass, Program
from galvatron.ir.types import BATCH, LOCAL_BATCH, Dim, exact_quotient, simplify_dim
from galvatron.passes.costs.events import Collective, Profile, collectives_s, kernels_s
from galvatron.passes.costs.profile import profile_graph
from galvatron.passes.sharding import Partitioner
from galvatron.passes.sharding.boundary import Border
from galvatron.passes.sharding.choices import RoleChoices
from galvatron.passes.sharding.factors import Factor, FactorTable, OpFactor
from galvatron.passes.sharding.modes import pieces
from galvatron.passes.sharding.partition import role_of, whole_state


class Reason(enum.Enum):
    """Why an op is whole on an axis."""

    NO_RULE = "no rule"
    """The rule table does not know the op."""
    INDIVISIBLE = "cannot be split"
    """It works along the dimension that the axis shards around it, or along every one but the batch."""
    ROLE = "whole by the axis' role"
    """It has dimensions to split, but none that the role splits (tp: those of parameters, cp: the sequence)."""
    SIZE = "size does not divide"
    """A dimension could be split, but not into equal parts on this many devices."""
    CHEAPER = "cheaper whole"
    """It could be split, but its readers or the border of the layer want it whole, and the collective costs more."""

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class Fallback:
    """Ops of one kind that are whole on one axis for one reason.

    `seconds` are forward plus backward per micro-batch of one layer, `saved_s` those of them that splitting would save.
    `target` and `reason` are None for all ops together of which each would save less than a kernel launch.
    """

    target: str | None
    axis: Axis
    reason: Reason | None
    count: int
    seconds: float
    saved_s: float


@dataclass(frozen=True)
class Channel:
    """The collectives of one kind on one axis: how many per micro-batch of one layer, and their seconds."""

    kind: str
    axis: Axis
    forward: int
    backward: int
    seconds: float


@dataclass(frozen=True)
class ClassStatistics:
    """One sharded class: how many layers have it, the seconds of its kernels per micro-batch, what is whole in it, and
    what it sends."""

    name: str
    layers: int
    compute_s: float
    fallbacks: tuple[Fallback, ...]
    channels: tuple[Channel, ...]


def sharding_statistics(planned: Program, sharded: Program) -> tuple[ClassStatistics, ...]:
    """What is whole and what is sent in every class of a sharded program that runs on more than one device.

    Args:
        planned: the program that `shard` was given.
        sharded: the program that it left, or a later form of that.

    Raises:
        GalvatronError: the programs are not of these forms, or not of one another.
    """
    if planned.form is not Form.PLANNED or sharded.form < Form.SHARDED:
        raise GalvatronError(
            "statistics of sharding need the planned program and the sharded one, "
            f"not a {planned.form} and a {sharded.form} one"
        )
    reader = _Reader(planned, sharded)
    return tuple(reader.statistics(cls) for cls in sharded.classes if cls.mesh)


class _Reader:
    """Reads the classes of a sharded program beside those that they were sharded from."""

    def __init__(self, planned: Program, sharded: Program) -> None:
        assert planned.plan is not None and planned.cluster is not None
        self._planned, self._cluster = planned, planned.cluster
        self._micro_batch = planned.plan.global_batch_size // planned.plan.micro_batches
        layers = sharded.layers or tuple(layer for stage in sharded.stages for layer in stage.layers)
        self._uses = Counter(layer.cls for layer in layers)
        self._borders = Partitioner(planned, planned.cluster).borders
        self._local_borders = Partitioner(replace(sharded, layers=layers), planned.cluster).borders

    def statistics(self, cls: LayerClass) -> ClassStatistics:
        differentiable = self._local_borders[cls.name].differentiable
        batch = self._micro_batch / (cls.strategy.degree("dp") if cls.strategy else 1)
        profile = profile_graph(cls.graph, cls.mesh, differentiable)
        return ClassStatistics(
            name=cls.name,
            layers=self._uses[cls.name],
            compute_s=kernels_s((*profile.forward, *profile.backward), self._cluster, batch),
            fallbacks=self._fallbacks(cls, differentiable, batch) if cls.base else (),
            channels=_channels(profile, self._cluster, batch),
        )

    def _fallbacks(self, cls: LayerClass, differentiable: frozenset[str], batch: float) -> tuple[Fallback, ...]:
        base = self._planned.class_of.get(cls.base)
        local = tuple(op for op in cls.graph.ops if op.namespace != "comm")
        if base is None or len(base.graph.ops) != len(local):
            raise GalvatronError(f"class {cls.name!r} was not sharded from the program given")
        totals: dict[tuple[Axis, str | None, Reason | None], _Total] = {}
        for position, axis in enumerate(cls.mesh):
            whole = [i for i, op in enumerate(local) if _is_whole(cls.graph, op, position)]
            reasons = _reasons(base.graph, cls, local, position, self._borders[cls.base])
            for index in whole:
                seconds, saved_s = self._seconds(cls, local[index], axis, differentiable, batch)
                if seconds == 0.0:
                    continue  # a view
                small = saved_s < self._cluster.device.kernel_launch_s
                key = (axis, None, None) if small else (axis, base.graph.ops[index].target, reasons[index])
                totals.setdefault(key, _Total()).add(seconds, saved_s)
        rows = [Fallback(target, axis, why, t.count, t.seconds, t.saved_s) for (axis, target, why), t in totals.items()]
        return tuple(sorted(rows, key=lambda row: (cls.mesh.index(row.axis), row.target is None, -row.saved_s)))

    def _seconds(
        self, cls: LayerClass, op: Op, axis: Axis, differentiable: frozenset[str], batch: float
    ) -> tuple[float, float]:
        """Forward and backward seconds of one op of a local graph, and how many of them splitting would save."""
        inputs = tuple(cls.graph.values[name] for name in dict.fromkeys(op.operands))
        alone = Graph(inputs, (), (op,), tuple(v.name for v in op.results))
        profile = profile_graph(alone, cls.mesh, differentiable & {v.name for v in inputs})
        events = (*profile.forward, *profile.backward)
        launchless = replace(self._cluster, device=replace(self._cluster.device, kernel_launch_s=0.0))
        work_s = kernels_s(events, launchless, batch)
        return kernels_s(events, self._cluster, batch), work_s * (1 - 1 / axis.size)


@dataclass
class _Total:
    count: int = 0
    seconds: float = 0.0
    saved_s: float = 0.0

    def add(self, seconds: float, saved_s: float) -> None:
        self.count += 1
        self.seconds += seconds
        self.saved_s += saved_s


@dataclass
class _Sent:
    events: list[Collective] = field(default_factory=list)
    forward: int = 0


def _channels(profile: Profile, cluster: Cluster, batch: float) -> tuple[Channel, ...]:
    sent: dict[tuple[Axis, str], _Sent] = {}
    for phase, events in ((1, profile.forward), (0, profile.backward)):
        for event in events:
            if isinstance(event, Collective):
                channel = sent.setdefault((event.axis, event.kind), _Sent())
                channel.events.append(event)
                channel.forward += phase
    return tuple(
        Channel(kind, axis, s.forward, len(s.events) - s.forward, collectives_s(s.events, cluster, batch))
        for (axis, kind), s in sent.items()
    )


def _is_whole(graph: Graph, op: Op, position: int) -> bool:
    """Whether no operand and no result of a local op is sharded on an axis."""
    layouts = (graph.values[name].layout or () for name in (*op.operands, *(v.name for v in op.results)))
    return not any(isinstance(layout[position], Shard) for layout in layouts)


def _is_gathered(graph: Graph, op: Op, position: int) -> bool:
    """Whether an operand of a local op is sharded on an axis before it is converted for the op."""
    for name in op.operands:
        while name in graph.producers and graph.producers[name].namespace == "comm":
            (name,) = graph.producers[name].operands
            if isinstance((graph.values[name].layout or ())[position], Shard):
                return True
    return False


def _reasons(graph: Graph, cls: LayerClass, local: tuple[Op, ...], position: int, border: Border) -> list[Reason]:
    """Per op of a base graph, why it is whole on an axis if it is: what the partitioner had to choose from there."""
    assert cls.strategy is not None
    axis, table = cls.mesh[position], FactorTable(graph)
    placed = {v.name: v.layout[position] for v in cls.graph.state if v.layout is not None}
    offered = RoleChoices(graph, border, table, role_of(cls.strategy, axis), whole_state(placed))
    taken = [_taken(graph, table, cls, i, op, position) for i, op in enumerate(local)]
    modes = offered.on(axis, taken).modes

    def reason(index: int) -> Reason:
        if any(mode.share < 1 for mode in modes[index]):
            return Reason.CHEAPER
        dims, factors = table.dims[index], table.op_factors(index)
        if dims is None:
            return Reason.NO_RULE
        if not factors or (dims.indivisible and all(f.size == BATCH for f in factors)):
            return Reason.INDIVISIBLE
        reached = [f for f in factors if offered.allowed(index, f)]
        if not reached:
            gathered = dims.indivisible and _is_gathered(cls.graph, local[index], position)
            return Reason.INDIVISIBLE if gathered else Reason.ROLE
        ways = [pieces(axis) * taken[index].get(f, 1) for f in reached]
        uneven = all(exact_quotient(f.size, w) is None for f, w in zip(reached, ways, strict=True))
        return Reason.SIZE if uneven else Reason.INDIVISIBLE

    return [reason(index) for index in range(len(graph.ops))]


def _taken(
    graph: Graph, table: FactorTable, cls: LayerClass, index: int, local: Op, position: int
) -> dict[OpFactor, int]:
    """How many ways the axes before `position` shard each factor of an op."""
    assert cls.strategy is not None
    micro_batch = simplify_dim(cls.strategy.degree("dp") * LOCAL_BATCH)
    taken: dict[OpFactor, int] = {}
    for factor in table.op_factors(index):
        places = list(_places(graph, cls.graph, graph.ops[index], local, (*factor.operands, *factor.results)))
        for earlier, axis in enumerate(cls.mesh[:position]):
            for whole, layout, place in places:
                placement = layout[earlier]
                outer = exact_quotient(whole[place.dim], simplify_dim(place.inner * place.size))
                if outer is not None and not isinstance(outer, int):
                    outer = simplify_dim(outer.subs(BATCH, micro_batch))
                if isinstance(placement, Shard) and (placement.dim, placement.outer) == (place.dim, outer):
                    taken[factor] = taken.get(factor, 1) * axis.size
                    break
    return taken


def _places(
    graph: Graph, local_graph: Graph, op: Op, local: Op, factors: tuple[Factor | None, ...]
) -> Iterator[tuple[tuple[Dim, ...], Layout, Factor]]:
    """The whole shape and the local layout of every value of an op that has a factor, with the factor there."""
    names = (*op.operands, *(v.name for v in op.results))
    local_names = (*local.operands, *(v.name for v in local.results))
    for name, local_name, factor in zip(names, local_names, factors, strict=True):
        if factor is not None:
            yield graph.values[name].type.shape, local_graph.values[local_name].layout or (), factor
