"""The pass `annotate-costs`: what each layer class costs on one device before any sharding, symbolic in the batch
size."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial

import sympy

from galvatron.costs.events import Launch, Linear, launches
from galvatron.costs.kept_classes import class_costs
from galvatron.ir.cluster import Cluster
from galvatron.ir.cost import ClassCost
from galvatron.ir.graph import Graph
from galvatron.ir.ops.table import derived
from galvatron.ir.program import Form, LayerClass, Program
from galvatron.ir.types import BATCH, DTYPE_BYTES, Dim, evaluate, simplify_dim
from galvatron.machine import Work
from galvatron.partition.boundary import Border
from galvatron.partition.context import Partitioner
from galvatron.passes.base import Pass

ANY_CLUSTER = "a100-80g:1x1"
"""What a class costs before sharding is the same on every cluster of GPUs."""


@dataclass(frozen=True)
class AnnotateCosts(Pass):
    """Runs every class once on fake tensors and writes down FLOPs, traffic, saved activations and parameters.

    `cluster` is a preset such as `a100-80g:2x8` that the program is for; without it the program keeps the one it has.
    """

    name = "annotate-costs"
    needs, leaves = Form.CLUSTERED, Form.COSTED

    cluster: str | None = None

    def run(self, program: Program) -> Program:
        if self.cluster is not None:
            program = replace(program, cluster=Cluster.parse(self.cluster))
        cluster = program.cluster or Cluster.parse(ANY_CLUSTER)
        costs = class_costs(program, cluster.device.kind, partial(_found, program, cluster))
        classes = (replace(cls, cost=cost) for cls, cost in zip(program.classes, costs, strict=True))
        return replace(program, form=Form.COSTED, classes=tuple(classes))


def _found(program: Program, cluster: Cluster) -> tuple[ClassCost, ...]:
    """The costs of all classes."""
    borders = Partitioner(program, cluster).borders
    return tuple(class_cost(cls, borders[cls.name], cluster.device.kind) for cls in program.classes)


@derived(maxsize=256)
def class_cost(cls: LayerClass, border: Border, kind: str) -> ClassCost:
    """The cost of one call of a class on a kind of device, given which of its inputs have a gradient and which of its
    state is trained."""
    from galvatron.costs.profile import profile_graph  # which loads torch, as a list of passes should not

    profile = profile_graph(cls.graph.without_outputs(border.given_outputs), (), border.differentiable, kind=kind)
    forward, backward = launches(profile.forward), launches(profile.backward)
    return ClassCost(
        forward_flop=_flop(forward),
        backward_flop=_flop(backward),
        traffic_bytes=_total(launch.traffic_bytes for launch in forward),
        saved_bytes=_total([profile.saved_bytes, *(size for _, size in profile.shared_bytes)]),
        parameter_bytes=_state_bytes(cls.graph, border.trainable),
    )


def _flop(kernels: Sequence[Launch]) -> Dim:
    works = (launch.work for launch in kernels if launch.work is not None)
    return simplify_dim(sum(Work(work.kind, tuple(map(_expression, work.sizes))).flop for work in works))


def _total(lines: Iterable[Linear]) -> Dim:
    """The sum of quantities as an expression in the batch size."""
    return simplify_dim(sum(map(_expression, lines)))


def _expression(line: Linear) -> sympy.Expr:
    return _exact(line.constant) + _exact(line.slope) * BATCH


def _exact(value: float) -> sympy.Expr:
    fraction = Fraction(value)
    return sympy.Integer(fraction.numerator) / fraction.denominator


def _state_bytes(graph: Graph, names: frozenset[str]) -> int:
    return sum(evaluate(v.type.numel, 1) * DTYPE_BYTES[v.type.dtype] for v in graph.state if v.name in names)
