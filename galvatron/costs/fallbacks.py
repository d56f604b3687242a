"""What sharding left whole: ops that every rank of a mesh axis runs at full size, why, and what that costs.

Which ops are whole on an axis, and why, is what the partitioner decided (`partition.decisions`). Partial sums do not
make an op less work: a `cumsum` of padded shards runs on every rank at the size of the whole.

Seconds are those of the cost model: every op is run by itself on fake tensors (`profile_graph`), at the plan's
micro-batch. Recomputation is not among them. An axis would take its share of an op's arithmetic and memory traffic, but
of no launch, and what it would add in communication is not deducted: the seconds saved are an upper bound. An op by
itself gets a gradient of full size where a class may have an expanded number (after a sum), so the seconds of a class
whose ops are all whole may be a little less than those of its ops.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import partial

from galvatron.costs.events import CollectiveCall, Profile, collectives_s, kernels_s, launches
from galvatron.costs.profile import profile_graph
from galvatron.errors import GalvatronError
from galvatron.ir.graph import Op
from galvatron.ir.layout import Axis
from galvatron.ir.overlap import is_arranged
from galvatron.ir.program import Form, LayerClass, Program
from galvatron.machine import Machine
from galvatron.partition import Partitioner
from galvatron.partition.decisions import Reason
from galvatron.partition.partition import ShardedClass


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
class Traffic:
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
    traffic: tuple[Traffic, ...]


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
        plan, cluster = planned.required_plan, planned.required_cluster
        self._planned, self._machine = planned, Machine(cluster)
        self._profiled = partial(profile_graph, kind=cluster.device.kind)
        self._micro_batch = plan.global_batch_size // plan.micro_batches
        self._uses = Counter(layer.cls for layer in sharded.all_layers)
        self._partitioner = Partitioner(planned, cluster)
        self._ties = plan.ties
        self._local_borders = Partitioner(sharded, cluster).borders

    def statistics(self, cls: LayerClass) -> ClassStatistics:
        border = self._local_borders[cls.name]
        differentiable = border.differentiable
        batch = self._micro_batch / (cls.strategy.sample_shards if cls.strategy else 1)
        trained = cls.graph.without_outputs(border.given_outputs)
        profile = self._profiled(trained, cls.mesh, differentiable)
        return ClassStatistics(
            name=cls.name,
            layers=self._uses[cls.name],
            compute_s=kernels_s((*profile.forward, *profile.backward), self._machine, batch),
            fallbacks=() if cls.converts else self._fallbacks(cls, differentiable, batch),
            traffic=_traffic(profile, self._machine, batch),
        )

    def _fallbacks(self, cls: LayerClass, differentiable: frozenset[str], batch: float) -> tuple[Fallback, ...]:
        sharded = self._sharded(cls)
        whole = self._planned.class_of[cls.base].graph.ops
        local = [op for op in sharded.local.graph.ops if op.namespace != "comm"]
        totals: dict[tuple[Axis, str | None, Reason | None], _Total] = {}
        for axis, decisions in zip(cls.mesh, sharded.decisions, strict=True):
            for base, op, decision in zip(whole, local, decisions, strict=True):
                if decision.whole is None:
                    continue
                seconds, saved_s = self._seconds(cls, op, axis, differentiable, batch)
                if seconds == 0.0:
                    continue  # a view
                small = saved_s < self._machine.launch_s
                key = (axis, None, None) if small else (axis, base.target, decision.whole)
                totals.setdefault(key, _Total()).add(seconds, saved_s)
        rows = [Fallback(target, axis, why, t.count, t.seconds, t.saved_s) for (axis, target, why), t in totals.items()]
        return tuple(sorted(rows, key=lambda row: (cls.mesh.index(row.axis), row.target is None, -row.saved_s)))

    def _sharded(self, cls: LayerClass) -> ShardedClass:
        """The class as the partitioner leaves it, before its collectives were parted, and what was decided for it."""
        if cls.strategy is not None and cls.base in self._planned.class_of:
            sharded = self._partitioner.sharded(cls.base, cls.strategy, self._ties)
            if is_arranged(sharded.local.graph, cls.graph) and sharded.local.mesh == cls.mesh:
                return sharded
        raise GalvatronError(f"class {cls.name!r} was not sharded from the program given")

    def _seconds(
        self, cls: LayerClass, op: Op, axis: Axis, differentiable: frozenset[str], batch: float
    ) -> tuple[float, float]:
        """Forward and backward seconds of one op of a local graph, and how many of them splitting would save."""
        profile = self._profiled(cls.graph.part([op]), cls.mesh, differentiable.intersection(op.operands))
        events = (*profile.forward, *profile.backward)
        work_s = sum(self._machine.work_s(event.at(batch)) for event in launches(events))
        return kernels_s(events, self._machine, batch), work_s * (1 - 1 / axis.size)


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
    events: list[CollectiveCall] = field(default_factory=list)
    forward: int = 0


def _traffic(profile: Profile, machine: Machine, batch: float) -> tuple[Traffic, ...]:
    sent: dict[tuple[Axis, str], _Sent] = {}
    for phase, events in ((1, profile.forward), (0, profile.backward)):
        for event in events:
            if isinstance(event, CollectiveCall):
                channel = sent.setdefault((event.axis, event.kind), _Sent())
                channel.events.append(event)
                channel.forward += phase
    return tuple(
        Traffic(kind, axis, s.forward, len(s.events) - s.forward, collectives_s(s.events, machine, batch))
        for (axis, kind), s in sent.items()
    )
