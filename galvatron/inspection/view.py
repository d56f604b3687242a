"""A program as whoever looks into it sees it: as layers whatever its form, with the figures of classes and ops."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from galvatron.errors import GalvatronError, did_you_mean
from galvatron.inspection.programs import WHOLE, as_layers
from galvatron.ir.cluster import Cluster
from galvatron.ir.graph import Op
from galvatron.ir.program import Form, Layer, LayerClass, Program, When
from galvatron.ir.summary import sample_costs
from galvatron.partition import Partitioner
from galvatron.partition.boundary import Border
from galvatron.passes.printing import ops_within

if TYPE_CHECKING:
    from galvatron.costs.events import Profile

NOMINAL = "a100-80g:1x1"
"""What kernels are told for where a program has no cluster."""


@dataclass(frozen=True)
class Amounts:
    """What a class or an op does, of one sample on one device; of a sharded program, of a micro-batch on one rank.

    `kept_bytes` is what autograd keeps for the backward, `moved_bytes` what the kernels of a forward read and write.
    """

    forward_flop: float
    backward_flop: float
    kept_bytes: float
    moved_bytes: float


@dataclass(frozen=True)
class View:
    """A program with layers; a captured one is a single layer. `form` is the form that it has."""

    program: Program
    form: Form

    @staticmethod
    def of(program: Program) -> View:
        return View(as_layers(program), program.form)

    @property
    def is_local(self) -> bool:
        """Whether its graphs are those of one rank."""
        return self.form >= Form.SHARDED

    @property
    def unit(self) -> str:
        """What figures are of."""
        return "one micro-batch on one rank" if self.is_local else "one sample"

    @cached_property
    def partitioner(self) -> Partitioner:
        """Shards its classes, on its cluster if it has one."""
        return Partitioner(self.program, self.program.cluster or Cluster.parse(NOMINAL))

    @property
    def borders(self) -> dict[str, Border]:
        """The borders of its classes."""
        return self.partitioner.borders

    def layers_of(self, cls: LayerClass) -> tuple[Layer, ...]:
        """The layers of a class."""
        return self.program.layers_of[cls.name]

    def classes_of(self, name: str) -> list[LayerClass]:
        """The classes that a name means: of a layer, in each stage that has a copy of it, or of a class. Of a captured
        program it is a module's, and the class has the ops of that.

        Raises:
            GalvatronError: there is no such layer.
        """
        if self.form is Form.CAPTURED and name != WHOLE:
            (whole,) = self.program.classes
            return [replace(whole, graph=whole.graph.part(ops_within(whole.graph, name)))]
        named = {layer.cls for layer in self.program.all_layers if name in (layer.name, layer.cls)}
        found = [cls for cls in self.program.classes if cls.name in named or name in (cls.name, cls.base)]
        if not found:
            names = (name for layer in self.program.all_layers for name in (layer.name, layer.cls))
            raise GalvatronError(f"there is no layer {name!r}; {did_you_mean(name, dict.fromkeys(names))}")
        return found

    def class_named(self, name: str) -> LayerClass:
        """The only class that a name means; see `classes_of`.

        Raises:
            GalvatronError: there is none, or there are several.
        """
        found = self.classes_of(name)
        if len(found) > 1:
            names = ", ".join(cls.name for cls in found)
            raise GalvatronError(f"{name!r} are {len(found)} classes in this program: name one of {names}")
        return found[0]

    def class_figures(self, cls: LayerClass) -> Amounts:
        """The figures of one layer of a class."""
        if cls.cost is not None:
            return Amounts(*sample_costs(cls.cost, self.program.batch_size))
        return self._figures(cls, self._profile(cls))

    def op_figures(self, cls: LayerClass, op: Op) -> Amounts:
        """The figures of an op of a class, by itself."""
        from galvatron.costs.profile import profile_graph

        differentiable = self.borders[cls.name].differentiable.intersection(op.operands)
        return self._figures(cls, profile_graph(cls.graph.part([op]), cls.mesh, differentiable, kind=self._kind))

    def samples(self, cls: LayerClass) -> float:
        """How many samples its local graph is of, on one data-parallel shard."""
        plan, layers = self.program.required_plan, self.layers_of(cls)
        shards = cls.strategy.sample_shards if cls.strategy is not None else 1
        once = any(layer.when is not When.MICRO_BATCH for layer in layers)
        return plan.global_batch_size / (1 if once else plan.micro_batches) / shards

    @property
    def _kind(self) -> str:
        return (self.program.cluster or Cluster.parse(NOMINAL)).device.kind

    def _profile(self, cls: LayerClass) -> Profile:
        from galvatron.costs.profile import profile_graph

        border = self.borders[cls.name]
        recompute = cls.strategy.recompute if cls.strategy is not None else "none"
        trained = cls.graph.without_outputs(border.given_outputs)
        return profile_graph(trained, cls.mesh, border.differentiable, recompute, kind=self._kind)

    def _figures(self, cls: LayerClass, profile: Profile) -> Amounts:
        from galvatron.costs.events import launches

        batch = self.samples(cls) if self.is_local else float(self.program.batch_size)
        forward, backward = ([one.at(batch) for one in launches(e)] for e in (profile.forward, profile.backward))
        kept = profile.saved_bytes(batch) + sum(size(batch) for _, size in profile.shared_bytes)
        found = (
            sum(kernel.flop for kernel in forward),
            sum(kernel.flop for kernel in backward),
            kept,
            sum(kernel.traffic_bytes for kernel in forward),
        )
        return Amounts(*(figure / (1 if self.is_local else batch) for figure in found))
