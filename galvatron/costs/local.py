"""What a training step runs of a layer class on one rank, under a strategy: what is profiled, and what is measured."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from galvatron.ir.fingerprints import local_fingerprint
from galvatron.ir.graph import Graph
from galvatron.ir.plan import Ties
from galvatron.ir.program import LayerClass, Program
from galvatron.ir.strategy import Strategy
from galvatron.partition import Partitioner
from galvatron.partition.boundary import Border


@dataclass(frozen=True)
class LocalClass:
    """A layer class as a rank runs it.

    Attributes:
        cls: its local form, with the recomputation of the strategy.
        graph: what of it a training step runs.
        differentiable: its inputs and state that have a gradient.
    """

    cls: LayerClass
    graph: Graph
    differentiable: frozenset[str]

    @property
    def recompute(self) -> str:
        return self.cls.strategy.recompute if self.cls.strategy is not None else "none"

    @cached_property
    def fingerprint(self) -> str:
        """By which it is found again (`galvatron.ir.fingerprints`)."""
        return local_fingerprint(self.graph, self.cls.mesh, self.differentiable, self.recompute)


def local_class(program: Program, partitioner: Partitioner, name: str, strategy: Strategy, ties: Ties) -> LocalClass:
    """A class of a program under a strategy.

    Args:
        ties: see `Partitioner.shard`.
    """
    sharded, border = partitioner.shard(name, strategy, ties), partitioner.borders[name]
    local = replace(sharded, strategy=Strategy(strategy.axes, recompute=strategy.recompute))
    graph = trained_graph(sharded.graph, program.class_of[name].graph, border)
    return LocalClass(local, graph, border.differentiable)


def trained_graph(local: Graph, planned: Graph, border: Border) -> Graph:
    """What of the local graph of a class a training step runs: nothing that only the outputs of the model need."""
    pairs = zip(local.outputs, planned.outputs, strict=True)
    return local.without_outputs(frozenset(name for name, formal in pairs if formal in border.given_outputs))
