"""What a layer class is to its program: the facts at its border that sharding needs; sharded classes by strategy."""

from __future__ import annotations

from collections import Counter, defaultdict
from functools import cached_property

from galvatron.ir.cluster import Cluster
from galvatron.ir.program import Layer, LayerClass, Program, When
from galvatron.ir.strategy import Strategy
from galvatron.passes.sharding.boundary import Border
from galvatron.passes.sharding.partition import shard_class


class Partitioner:
    """Shards the classes of one program on one cluster, each pair of class and strategy once."""

    def __init__(self, program: Program, cluster: Cluster) -> None:
        self.program = program
        self.cluster = cluster
        self._sharded: dict[tuple[str, Strategy], LayerClass] = {}

    def shard(self, cls: str, strategy: Strategy) -> LayerClass:
        """The local form of a class under a strategy; ZeRO and recomputation do not change it."""
        key = (cls, Strategy(strategy.axes))
        if key not in self._sharded:
            batch = max(1, self.program.batch_size // strategy.degree("dp"))
            layer_class = self.program.class_of[cls]
            self._sharded[key] = shard_class(layer_class, key[1], self.cluster, self.borders[cls], batch=batch)
        return self._sharded[key]

    def differentiable(self, value: str) -> bool:
        """Whether a program-level value has a gradient."""
        return value in self._differentiable[1]

    @cached_property
    def borders(self) -> dict[str, Border]:
        """The border of every class."""
        program = self.program
        formals, _ = self._differentiable
        uses = Counter(name for layer in program.layers for name in set(layer.state))
        borders: dict[str, Border] = {}
        for cls in program.classes:
            layers = [layer for layer in program.layers if layer.cls == cls.name]
            trainable = {
                formal.name
                for layer in layers
                for formal, name in zip(cls.graph.state, layer.state, strict=True)
                if program.state_of[name].trainable
            }
            # A parameter that several layers share is kept whole wherever it is used, so that the layers may differ in
            # strategy.
            shared = {
                formal.name
                for layer in layers
                for formal, name in zip(cls.graph.state, layer.state, strict=True)
                if uses[name] > 1 and formal.name in trainable
            }
            results = {
                n
                for layer in layers
                for n, r in zip(cls.graph.outputs, layer.results, strict=True)
                if r == program.output
            }
            borders[cls.name] = Border(
                differentiable=frozenset(formals[cls.name] | trainable),
                trainable=frozenset(trainable),
                loss=next(iter(results), None),
                whole_outputs=frozenset(cls.graph.outputs if any(layer.when is When.STEP for layer in layers) else ()),
                whole_state=frozenset(shared),
            )
        return borders

    @cached_property
    def _differentiable(self) -> tuple[dict[str, set[str]], set[str]]:
        """The values with a gradient: of each class by formal name, and of the program.

        A class has one graph for all its layers, so a value has a gradient as soon as its counterpart in one layer
        does.
        """
        formals: dict[str, set[str]] = defaultdict(set)
        values: set[str] = set()
        while True:
            before = (sum(map(len, formals.values())), len(values))
            for layer in self.program.layers:
                self._mark(layer, formals[layer.cls], values)
            if before == (sum(map(len, formals.values())), len(values)):
                return formals, values

    def _mark(self, layer: Layer, formals: set[str], values: set[str]) -> None:
        graph = self.program.class_of[layer.cls].graph
        formals.update(f.name for f, n in zip(graph.inputs, layer.operands, strict=True) if n in values)
        formals.update(
            f.name for f, n in zip(graph.state, layer.state, strict=True) if self.program.state_of[n].trainable
        )
        for op in graph.ops:
            if op.target != "aten.detach.default" and any(name in formals for name in op.operands):
                formals.update(v.name for v in op.results if v.type.is_floating)
        values.update(n for n, f in zip(layer.results, graph.outputs, strict=True) if f in formals)
        values.update(n for f, n in zip(graph.inputs, layer.operands, strict=True) if f.name in formals)
