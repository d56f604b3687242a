"""`shard`: every layer becomes a call of the local graph of its (class, strategy) pair.

Layers come out stage by stage, the epilogue at the end of the last, under the strategy of the layer before it. The
preamble is needed wherever something reads it, in the reader's layout: each stage gets its own copy per strategy, just
before the first reader. Statistics of the batch are computed whole on every rank of a stage that reads them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from galvatron.errors import PlanError
from galvatron.ir.plan import Plan
from galvatron.ir.planning import epilogue, epilogue_strategy, planned_layers
from galvatron.ir.program import Form, Layer, LayerClass, Program, When
from galvatron.ir.strategy import Strategy
from galvatron.passes.base import Pass
from galvatron.passes.sharding import Partitioner


@dataclass(frozen=True)
class Shard(Pass):
    """Local graphs with layouts and collectives, for the strategies of the program's plan."""

    name = "shard"
    needs, leaves = Form.PLANNED, Form.SHARDED

    def run(self, program: Program) -> Program:
        if program.plan is None or program.cluster is None:
            raise PlanError("shard needs a program with a plan and a cluster")
        assembly = _Assembly(program, program.plan, Partitioner(program, program.cluster))
        used = {layer.cls for layer in assembly.layers}
        classes = tuple(c for c in assembly.classes.values() if c.name in used)
        return replace(
            program, form=Form.SHARDED, classes=classes, layers=tuple(assembly.layers), candidates=(), cuts=()
        )


class _Assembly:
    """The sharded layers in order, with copies of the shared ones where they are read."""

    def __init__(self, program: Program, plan: Plan, partitioner: Partitioner) -> None:
        self.classes: dict[str, LayerClass] = {}
        self.layers: list[Layer] = []
        self._partitioner = partitioner
        self._agreed = partitioner.agreed(plan.strategies)
        self._shared = {
            r: layer for layer in program.layers if layer.when in (When.STEP, When.PREAMBLE) for r in layer.results
        }
        self._single = len({(i, s) for i, stage in enumerate(plan.stages) for s in stage}) == 1
        own = iter(planned_layers(program))
        for index, strategies in enumerate(plan.stages):
            copies: dict[tuple[str, Strategy], Layer] = {}
            for strategy in strategies:
                layer = next(own, None)
                if layer is None:
                    raise PlanError(
                        f"the plan has {len(plan.strategies)} layers, the program fewer; search a plan for this model"
                    )
                self._add(layer, index, strategy, copies)
            if index == len(plan.stages) - 1:
                for layer in epilogue(program):
                    self._add(layer, index, epilogue_strategy(plan), copies)
        if next(own, None) is not None:
            raise PlanError(
                f"the plan has {len(plan.strategies)} layers, the program more; search a plan for this model"
            )

    def _add(self, layer: Layer, stage: int, strategy: Strategy, copies: dict[tuple[str, Strategy], Layer]) -> None:
        """Appends a layer under a strategy, after the copies of the shared layers that it reads."""
        operands = tuple(self._read(name, stage, strategy, copies) for name in layer.operands)
        cls = self._partitioner.shard(layer.cls, strategy, agreed=layer.cls in self._agreed)
        if layer.when in (When.MICROBATCH, When.EPILOGUE):
            # The class carries the plan's strategy whole: ZeRO and recomputation change how it runs, not its graph.
            cls = replace(cls, name=f"{layer.cls}@{strategy}", strategy=strategy)
        self.classes[cls.name] = cls
        self.layers.append(replace(layer, cls=cls.name, operands=operands))

    def _read(self, name: str, stage: int, strategy: Strategy, copies: dict[tuple[str, Strategy], Layer]) -> str:
        """The name under which a layer of this stage and strategy reads a value."""
        if name not in self._shared:
            return name
        layer = self._shared[name]
        # Every rank has the whole batch, so each computes the statistics of the whole batch for itself.
        key = (layer.name, Strategy(()) if layer.when is When.STEP else Strategy(strategy.axes))
        suffix = "" if self._single else f"@{stage}.{key[1]}"
        if key not in copies:
            copies[key] = layer
            copy = replace(layer, name=f"{layer.name}{suffix}", results=tuple(f"{r}{suffix}" for r in layer.results))
            self._add(copy, stage, key[1], copies)
        return f"{name}{suffix}"
