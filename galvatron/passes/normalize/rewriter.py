"""Rewriting one flat graph in one walk from inputs to outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from galvatron.ir.graph import Arg, Graph, Op, Ref, Source, Value
from galvatron.ir.names import Names, base_name
from galvatron.ir.ops.table import operator_of
from galvatron.ir.types import TensorType


class Builder:
    """The graph under construction: rules read what precedes an op here and emit the ops that replace it."""

    def __init__(self, graph: Graph, trainable: Iterable[str]) -> None:
        self.values = {v.name: v for v in (*graph.inputs, *graph.state)}
        self.producers: dict[str, Op] = {}
        self.ops: list[Op] = []
        self.differentiable = {name for name in trainable if name in self.values}
        self.used = {name for op in graph.ops for name in op.operands} | set(graph.outputs)
        self._names = Names(graph.values)
        self._source: Source | None = None

    def type_of(self, arg: Arg) -> TensorType:
        """The type of the tensor that an argument refers to."""
        assert isinstance(arg, Ref), arg
        return self.values[arg.name].type

    def producer(self, arg: Arg) -> Op | None:
        """The op that computes an argument; None for inputs, state and constants."""
        return self.producers.get(arg.name) if isinstance(arg, Ref) else None

    def emit(self, target: str, args: tuple[Arg, ...], type_: TensorType, **kwargs: Arg) -> Ref:
        """Adds an op with one result of the given type, at the source line of the op being rewritten."""
        name = self._names.fresh(base_name(target))
        self.add(Op(target, args, tuple(kwargs.items()), (Value(name, type_),), self._source))
        return Ref(name)

    def add(self, op: Op) -> None:
        """Adds an op as it is."""
        self.ops.append(op)
        reads_differentiable = not operator_of(op).stops_gradient and not self.differentiable.isdisjoint(op.operands)
        for value in op.results:
            self.values[value.name] = value
            self.producers[value.name] = op
            if reads_differentiable and value.type.is_floating:
                self.differentiable.add(value.name)

    def at(self, op: Op) -> None:
        """From here on emitted ops belong to the source line of `op`."""
        self._source = op.source


Rewrite = Callable[[Op, Builder], "Op | Ref | tuple[Ref, ...] | None"]
"""A rule: None where it does not apply, an op with the same results, or what replaces the results."""

Rules = Mapping[str, tuple[Rewrite, ...]]
"""The rules to try on an op, by its target."""


def rewrite(graph: Graph, rules: Rules, every: Rewrite, trainable: Iterable[str]) -> Graph:
    """Applies `every` and then the rules of its target to each op, again while the op changes, and drops dead ops.

    Args:
        trainable: names of the state that gradients flow to.
    """
    build = Builder(graph, trainable)
    renamed: dict[str, str] = {}
    for original in graph.ops:
        op = original.map_refs(lambda name: renamed.get(name, name))
        build.at(op)
        outcome = _rewritten(op, rules, every, build)
        if isinstance(outcome, Op):
            build.add(outcome)
        else:
            renamed.update((value.name, ref.name) for value, ref in zip(op.results, outcome, strict=True))
    outputs = tuple(renamed.get(name, name) for name in graph.outputs)
    live = replace(graph, ops=tuple(build.ops), outputs=outputs).without_dead_ops()
    read = {name for op in live.ops for name in op.operands} | set(outputs)
    return replace(live, state=tuple(value for value in live.state if value.name in read))


def _rewritten(op: Op, rules: Rules, every: Rewrite, build: Builder) -> Op | tuple[Ref, ...]:
    while True:
        for rule in (every, *rules.get(op.target, ())):
            outcome = rule(op, build)
            if isinstance(outcome, Ref):
                return (outcome,)
            if isinstance(outcome, tuple):
                return outcome
            if isinstance(outcome, Op) and outcome != op:
                op = outcome
                break
        else:
            return op
