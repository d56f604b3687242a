"""`redistribute`: where two layers disagree on a value's layout, a conversion takes it from one to the other."""

from __future__ import annotations

from dataclasses import dataclass, replace

from galvatron.ir.graph import Value
from galvatron.ir.layout import Axis, Layout
from galvatron.ir.program import Form, Layer, LayerClass, LayerKind, Program, Stage
from galvatron.passes.base import Pass
from galvatron.passes.sharding import redistribution_classes


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
        self._names = {name for layer in program.all_layers for name in (layer.name, *layer.results)}
        self._made: dict[str, tuple[Value, tuple[Axis, ...]]] = {}
        self._origins: dict[str, str] = {}

    def converted(self, stage: Stage) -> Stage:
        """A stage with the conversions before the layers that need them."""
        layers: list[Layer] = []
        moved: dict[tuple[str, Layout | None, tuple[Axis, ...]], str] = {}
        for layer in stage.layers:
            cls = self.classes[layer.cls]
            operands: list[str] = []
            for name, formal in zip(layer.operands, cls.graph.inputs, strict=True):
                key = (name, formal.layout, cls.mesh)
                if name in self._made and key not in moved:
                    conversions = self._conversions(stage.index, name, formal, cls)
                    layers += conversions
                    moved[key] = conversions[-1].results[0] if conversions else name
                operands.append(moved.get(key, name))
            layers.append(replace(layer, operands=tuple(operands)))
            for name, result in zip(layer.results, cls.graph.outputs, strict=True):
                self._made[name] = (cls.graph.values[result], cls.mesh)
            self._origins.update(zip(layer.results, layer.origin, strict=False))
        return replace(stage, layers=tuple(layers))

    def _conversions(self, stage: int, name: str, formal: Value, reader: LayerClass) -> list[Layer]:
        """The layers that take a value to the layout of a formal input of its reader."""
        made, target = self._made[name], (formal, reader.mesh)
        moves = redistribution_classes(
            f"redistribute.{len(self.classes)}", made, target, differentiable=made[0].type.is_floating
        )
        layers: list[Layer] = []
        origin = self._origins.get(name, name)
        for move in (one.cls for one in moves):
            known = next((c for c in self.classes.values() if replace(c, name="") == replace(move, name="")), move)
            self.classes[known.name] = known
            moved = self._fresh(f"{name}@{stage}.{reader.strategy}")
            layers.append(Layer(moved, known.name, (name,), (), (moved,), LayerKind.CONVERSION, (origin,)))
            name = moved
        return layers

    def _fresh(self, wish: str) -> str:
        name, count = wish, 1
        while name in self._names:
            count += 1
            name = f"{wish}.{count}"
        self._names.add(name)
        return name
