"""`redistribute`: where two layers disagree on a value's layout, a layer of its own takes it from one to the other."""

from __future__ import annotations

from dataclasses import dataclass, replace

from galvatron.errors import PlanError
from galvatron.ir.graph import Value
from galvatron.ir.layout import Axis, Layout
from galvatron.ir.program import Form, Layer, Program, When
from galvatron.passes.base import Pass
from galvatron.passes.sharding import redistribution_class


@dataclass(frozen=True)
class Redistribute(Pass):
    """Inserts the cheapest legal collectives between layers that differ, once per value, layout and stage."""

    name = "redistribute"
    needs, leaves = Form.SHARDED, Form.SHARDED

    def run(self, program: Program) -> Program:
        if program.plan is None:
            raise PlanError("redistribute needs a program with a plan")
        boundaries = [len(stage) for stage in program.plan.stages]
        produced: dict[str, tuple[Value, tuple[Axis, ...]]] = {}
        classes = {c.name: c for c in program.classes}
        layers: list[Layer] = []
        moved: dict[tuple[str, Layout, tuple[Axis, ...]], str] = {}
        stage, done = 0, 0
        for layer in program.layers:
            if layer.when is When.MICROBATCH:
                if done == boundaries[stage]:
                    stage, done, moved = stage + 1, 0, {}
                done += 1
            cls = classes[layer.cls]
            operands: list[str] = []
            for name, formal in zip(layer.operands, cls.graph.inputs, strict=True):
                assert formal.layout is not None
                key = (name, formal.layout, cls.mesh)
                if name in produced and key not in moved:
                    move = redistribution_class(
                        f"redistribute.{len(classes)}",
                        produced[name],
                        (formal, cls.mesh),
                        differentiable=produced[name][0].type.is_floating,
                    )
                    moved[key] = name if move is None else f"{name}@{stage}.{cls.strategy}"
                    if move is not None:
                        known = next(
                            (c for c in classes.values() if replace(c, name="") == replace(move, name="")), move
                        )
                        classes[known.name] = known
                        layers.append(Layer(moved[key], known.name, (name,), (), (moved[key],)))
                operands.append(moved.get(key, name))
            layers.append(replace(layer, operands=tuple(operands)))
            for name, result in zip(layer.results, cls.graph.outputs, strict=True):
                produced[name] = (cls.graph.values[result], cls.mesh)
        return replace(program, classes=tuple(classes.values()), layers=tuple(layers))
