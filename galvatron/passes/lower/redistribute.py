"""`redistribute`: where two layers disagree on a value's layout, a conversion takes it from one to the other."""

from __future__ import annotations

from dataclasses import dataclass, replace

from galvatron.ir.gradients import gradients
from galvatron.ir.graph import Value
from galvatron.ir.layout import Layout, Mesh
from galvatron.ir.names import Names
from galvatron.ir.program import Form, Layer, LayerClass, LayerKind, Program, Stage
from galvatron.partition import Crossing
from galvatron.passes.base import Pass


@dataclass(frozen=True)
class Redistribute(Pass):
    """Inserts the cheapest legal collectives between layers that differ, once per value, layout and stage."""

    name = "redistribute"
    needs, leaves = Form.SHARDED, Form.SHARDED

    def run(self, program: Program) -> Program:
        moves = _Moves(program)
        stages = tuple(moves.converted(stage) for stage in program.stages)
        return replace(program, classes=tuple(moves.classes.values()), stages=stages)


class _Moves:
    """What the layers so far have made, with the conversions that their readers need."""

    def __init__(self, program: Program) -> None:
        self.classes = {c.name: c for c in program.classes}
        self._names = Names(name for layer in program.all_layers for name in (layer.name, *layer.results))
        self._differentiable = gradients(program).values
        self._made: dict[str, tuple[Value, Mesh]] = {}
        self._origins: dict[str, str] = {}

    def converted(self, stage: Stage) -> Stage:
        """A stage with the conversions before the layers that need them."""
        layers: list[Layer] = []
        moved: dict[tuple[str, Layout | None, Mesh], str] = {}
        for layer in stage.layers:
            cls = self.classes[layer.cls]
            operands: list[str] = []
            for name, formal in zip(layer.operands, cls.graph.inputs, strict=True):
                key = (name, formal.layout, cls.mesh)
                if name in self._made and key not in moved:
                    conversion = self._conversion(stage.index, name, formal, cls)
                    layers += [conversion] if conversion else []
                    moved[key] = conversion.results[0] if conversion else name
                operands.append(moved.get(key, name))
            layers.append(replace(layer, operands=tuple(operands)))
            for name, result in zip(layer.results, cls.graph.outputs, strict=True):
                self._made[name] = (cls.graph.values[result], cls.mesh)
            self._origins.update(zip(layer.results, layer.origin, strict=False))
        return replace(stage, layers=tuple(layers))

    def _conversion(self, stage: int, name: str, formal: Value, reader: LayerClass) -> Layer | None:
        """The layer that takes a value to the layout of a formal input of its reader; None where it has that."""
        made, target = self._made[name], (formal, reader.mesh)
        move = Crossing.between(made, target, differentiable=name in self._differentiable)
        if move is None:
            return None
        cls = move.cls(f"redistribute.{len(self.classes)}")
        known = next((c for c in self.classes.values() if replace(c, name="") == replace(cls, name="")), cls)
        self.classes[known.name] = known
        moved = self._names.fresh(f"{name}@{stage}.{reader.strategy}")
        origin = self._origins.get(name, name)
        return Layer(moved, known.name, (name,), (), (moved,), LayerKind.CONVERSION, (origin,))
