"""`redistribute`: where two layers disagree on a value's layout, a layer of its own takes it from one to the other."""

from __future__ import annotations

from dataclasses import dataclass, replace

from galvatron.errors import PlanError
from galvatron.ir.graph import Value
from galvatron.ir.layout import Axis, Layout
from galvatron.ir.plan import Plan
from galvatron.ir.program import Form, Layer, LayerClass, Program, When
from galvatron.passes.base import Pass
from galvatron.passes.sharding import redistribution


@dataclass(frozen=True)
class Redistribute(Pass):
    """Inserts the cheapest legal collectives between layers that differ, once per value, layout and stage."""

    name = "redistribute"
    needs, leaves = Form.SHARDED, Form.SHARDED

    def run(self, program: Program) -> Program:
        if program.plan is None:
            raise PlanError("redistribute needs a program with a plan")
        moves = _Moves(program)
        for stage, layer in stage_of_layers(program, program.plan):
            moves.add(stage, layer)
        return replace(program, classes=tuple(moves.classes.values()), layers=tuple(moves.layers))


class _Moves:
    """The layers so far, with the redistributions that their readers need."""

    def __init__(self, program: Program) -> None:
        self.classes = {c.name: c for c in program.classes}
        self.layers: list[Layer] = []
        self._made: dict[str, tuple[Value, tuple[Axis, ...]]] = {}
        self._moved: dict[tuple[int, str, Layout | None, tuple[Axis, ...]], str] = {}

    def add(self, stage: int, layer: Layer) -> None:
        """Appends a layer, after the redistributions of what it reads."""
        cls = self.classes[layer.cls]
        operands = (
            self._read(stage, name, formal, cls) for name, formal in zip(layer.operands, cls.graph.inputs, strict=True)
        )
        self.layers.append(replace(layer, operands=tuple(operands)))
        for name, result in zip(layer.results, cls.graph.outputs, strict=True):
            self._made[name] = (cls.graph.values[result], cls.mesh)

    def _read(self, stage: int, name: str, formal: Value, reader: LayerClass) -> str:
        """The name under which a class finds a value in the layout of its formal input."""
        key = (stage, name, formal.layout, reader.mesh)
        if name in self._made and key not in self._moved:
            self._moved[key] = self._move(stage, name, formal, reader)
        return self._moved.get(key, name)

    def _move(self, stage: int, name: str, formal: Value, reader: LayerClass) -> str:
        made, target = self._made[name], (formal, reader.mesh)
        move = redistribution(
            f"redistribute.{len(self.classes)}", made, target, differentiable=made[0].type.is_floating
        )
        if move is None:
            return name
        classes = self.classes.values()
        known = next((c for c in classes if replace(c, name="") == replace(move.cls, name="")), move.cls)
        self.classes[known.name] = known
        moved = f"{name}@{stage}.{reader.strategy}"
        if any(layer.name == moved for layer in self.layers):
            moved = f"{moved}.{len(self.layers)}"
        self.layers.append(Layer(moved, known.name, (name,), (), (moved,)))
        return moved


def stage_of_layers(program: Program, plan: Plan) -> list[tuple[int, Layer]]:
    """Every layer of a sharded program with its stage: copies of the preamble go with the layer that follows them, the
    epilogue is in the last stage."""
    left = [len(stage) for stage in plan.stages]
    found: list[tuple[int, Layer]] = []
    pending: list[Layer] = []
    stage = 0
    for layer in program.layers:
        pending.append(layer)
        if layer.when is When.MICROBATCH and program.class_of[layer.cls].base:
            while not left[stage]:
                stage += 1
            left[stage] -= 1
            found += [(stage, one) for one in pending]
            pending = []
    return [*found, *((stage, one) for one in pending)]
