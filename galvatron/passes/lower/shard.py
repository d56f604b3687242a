"""`shard`: every layer becomes a call of the local graph of its (class, strategy) pair, in the stage of the plan.

The epilogue stands at the end of the last stage, under the strategy of the layer before it. What makes new values of
state of sums over the batch stands at the end of the first stage that has them, whole on every rank. The preamble is
needed wherever something reads it, in the reader's layout: each stage gets its own copy per strategy, just before the
first reader. Statistics of the batch are computed whole on every rank of a stage that reads them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from galvatron.ir import plan_rules
from galvatron.ir.plan import Plan
from galvatron.ir.planned import closings_behind, epilogue, epilogue_strategy
from galvatron.ir.program import Form, Layer, LayerClass, LayerKind, Program, Stage
from galvatron.ir.strategy import WHOLE, Strategy
from galvatron.partition import Partitioner
from galvatron.passes.base import Pass


@dataclass(frozen=True)
class Shard(Pass):
    """Local graphs with layouts and collectives, for the strategies of the program's plan."""

    name = "shard"
    needs, leaves = Form.PLANNED, Form.SHARDED

    def run(self, program: Program) -> Program:
        assembly = _Assembly(program, program.required_plan, Partitioner(program, program.required_cluster))
        stages = assembly.stages()
        used = {layer.cls for stage in stages for layer in stage.layers}
        classes = tuple(c for c in assembly.classes.values() if c.name in used)
        return replace(program, form=Form.SHARDED, classes=classes, layers=(), stages=stages, candidates=(), cuts=())


class _Assembly:
    """The stages of sharded layers, with copies of the shared ones where they are read."""

    def __init__(self, program: Program, plan: Plan, partitioner: Partitioner) -> None:
        self.classes: dict[str, LayerClass] = {}
        self._program, self._plan, self._partitioner = program, plan, partitioner
        self._shared = {
            result: layer
            for layer in program.layers
            if layer.kind in (LayerKind.STEP, LayerKind.PREAMBLE)
            for result in layer.results
        }
        self._single = len({(i, s) for i, stage in enumerate(plan.stages) for s in stage}) == 1

    def stages(self) -> tuple[Stage, ...]:
        """Every stage with the layers that the plan gives it.

        Raises:
            PlanError: the plan has another number of layers.
        """
        plan, own = self._plan, self._program.planned_layers
        plan_rules.require(plan_rules.covers(plan, [len(own)]))
        placed = iter(own)
        closings = closings_behind(self._program)
        stages: list[Stage] = []
        for index, strategies in enumerate(plan.stages):
            layers = _StageLayers(index)
            here = [(next(placed), strategy) for strategy in strategies]
            for layer, strategy in here:
                self._add(layer, strategy, layers)
            for closing in (closing for layer, _ in here for closing in closings.get(layer.name, ())):
                self._add(closing, WHOLE, layers)
            if index == len(plan.stages) - 1:
                for layer in epilogue(self._program):
                    self._add(layer, epilogue_strategy(plan), layers)
            stages.append(Stage(index, tuple(layers.layers)))
        return tuple(stages)

    def _add(self, layer: Layer, strategy: Strategy, stage: _StageLayers) -> None:
        """Appends a layer under a strategy, after the copies of the shared layers that it reads."""
        operands = tuple(self._read(name, strategy, stage) for name in layer.operands)
        cls = self._partitioner.shard(layer.cls, strategy, self._plan.ties)
        if layer.kind in (LayerKind.PLANNED, LayerKind.EPILOGUE):
            # The class carries the plan's strategy whole: ZeRO and recomputation change how it runs, not its graph.
            cls = replace(cls, name=f"{layer.cls}@{strategy}", strategy=strategy)
        self.classes[cls.name] = cls
        stage.layers.append(replace(layer, cls=cls.name, operands=operands))

    def _read(self, name: str, strategy: Strategy, stage: _StageLayers) -> str:
        """The name under which a layer of this stage and strategy reads a value."""
        if name not in self._shared:
            return name
        layer = self._shared[name]
        # Every rank has the whole batch, so each computes the statistics of the whole batch for itself.
        own = WHOLE if layer.kind is LayerKind.STEP else Strategy(strategy.axes)
        if (layer.name, own) not in stage.copies:
            stage.copies[layer.name, own] = copy = self._copy(layer, stage.index, own)
            self._add(copy, own, stage)
        return stage.copies[layer.name, own].results[layer.results.index(name)]

    def _copy(self, layer: Layer, stage: int, strategy: Strategy) -> Layer:
        """A shared layer as a stage has it under a strategy: with names of its own where there are several."""
        if self._single:
            return layer
        results = tuple(f"{result}@{stage}.{strategy}" for result in layer.results)
        return replace(layer, name=f"{layer.name}@{stage}.{strategy}", results=results, origin=layer.results)


class _StageLayers:
    """The layers of one stage so far, and its copies of shared layers by name and strategy."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.layers: list[Layer] = []
        self.copies: dict[tuple[str, Strategy], Layer] = {}
