"""`step.either(%trained, %evaluated)`: a value that is one thing in a step that trains, another in one that does not.

A model may ask whether it trains (`self.training`), and take another way. A program then has both ways, and where they
come together again this op chooses; what only one of them needs is computed in steps of that kind alone. To sharding it
is like a sum, of which one summand is zero.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from galvatron.ir.graph import Graph, Op

EITHER = "step.either"


def has_ways(graph: Graph) -> bool:
    """Whether a graph does different things in training and evaluation."""
    return any(op.target == EITHER for op in graph.ops)


def in_training(graph: Graph) -> Graph:
    """What of a graph a step that trains computes."""
    return one_way(graph, training=True) if has_ways(graph) else graph


def one_way(graph: Graph, *, training: bool) -> Graph:
    """What of a graph one kind of step computes, but for what operators leave out in evaluation by themselves."""
    way = 0 if training else 1
    taken: dict[str, str] = {}
    ops: list[Op] = []
    for op in graph.ops:
        if op.target == EITHER:
            operand = op.operands[way]
            taken[op.result.name] = taken.get(operand, operand)
        else:
            ops.append(op.map_refs(lambda name: taken.get(name, name)))
    outputs = tuple(taken.get(name, name) for name in graph.outputs)
    return replace(graph, ops=tuple(ops), outputs=outputs).without_dead_ops()


@dataclass(frozen=True)
class Ways:
    """Which ops of a graph only one kind of step needs."""

    graph: Graph

    @cached_property
    def _needed(self) -> tuple[frozenset[str], frozenset[str]]:
        """The values that are needed in training, and in evaluation."""
        found: list[frozenset[str]] = []
        for way in (0, 1):
            live = set(self.graph.outputs)
            for op in reversed(self.graph.ops):
                if any(v.name in live for v in op.results):
                    live.update([op.operands[way]] if op.target == EITHER else op.operands)
            found.append(frozenset(live))
        return found[0], found[1]

    def only(self, op: Op) -> bool | None:
        """True for an op that only training needs, False for one that only evaluation does, None for one of both."""
        trained, evaluated = (any(v.name in needed for v in op.results) for needed in self._needed)
        return None if trained is evaluated else trained
