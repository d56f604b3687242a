"""`split-stages`: what each stage receives and sends, and the state it keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from galvatron.errors import PlanError
from galvatron.ir.gradients import gradients
from galvatron.ir.layout import gradientless, joined_layout, joint_mesh, on_mesh
from galvatron.ir.program import Form, Layer, Program, Stage, StateLayout, Transfer
from galvatron.ir.ties import zero_levels
from galvatron.ir.zero import in_parts, summed_axes
from galvatron.passes.base import Pass


@dataclass(frozen=True)
class SplitStages(Pass):
    """Makes stages whole in themselves. A value read several stages on travels through the stages between."""

    name = "split-stages"
    needs, leaves = Form.SHARDED, Form.STAGED

    def run(self, program: Program) -> Program:
        groups = [stage.layers for stage in program.stages]
        types = program.values()
        differentiable = gradients(program).values
        batch_inputs = {v.name for v in program.inputs}
        made = [{name for layer in group for name in layer.results} for group in groups]
        read = [{name for layer in group for name in layer.operands} for group in groups]
        crossings: list[tuple[Transfer, ...]] = []
        for boundary in range(1, len(groups)):
            before = set().union(*made[:boundary])
            after = set().union(*read[boundary:]) - batch_inputs
            crossings.append(
                tuple(Transfer(n, types[n].type, n in differentiable) for n in types if n in before and n in after)
            )
        levels = zero_levels(program)
        stages = tuple(
            replace(
                stage,
                receives=crossings[index - 1] if index else (),
                sends=crossings[index] if index < len(crossings) else (),
                state=_state_layouts(program, stage.layers, levels),
            )
            for index, stage in enumerate(program.stages)
        )
        _check_gradients(program, stages)
        return replace(program, form=Form.STAGED, stages=stages)


def _check_gradients(program: Program, stages: Sequence[Stage]) -> None:
    """Sees that the stage which finds out whether a parameter has a gradient is the one that keeps it.

    Raises:
        PlanError: another one keeps it.
    """
    keepers = {stage.index: {kept.state for kept in stage.state} for stage in stages}
    for one in program.reached:
        own = next(s.index for s in stages if any(one.value in layer.results for layer in s.layers))
        for name in one.states:
            if odd := [index for index, kept in keepers.items() if name in kept and index != own]:
                raise PlanError(
                    f"stage {odd[0]} keeps {name!r}, but only stage {own} knows whether a row of the step has reached "
                    "it; give all layers that read it one stage"
                )


def _state_layouts(program: Program, group: Sequence[Layer], levels: dict[str, int]) -> tuple[StateLayout, ...]:
    """One layout per piece of state that the layers of a stage read or update.

    Raises:
        PlanError: two layers of the stage keep it differently.
    """
    kept: dict[str, StateLayout] = {}
    for layer in group:
        cls = program.class_of[layer.cls]
        formals = [*zip(layer.state, cls.graph.state, strict=True)]
        formals += [(update.state, value) for update, value in program.updates_in(layer)]
        for name, formal in formals:
            assert formal.layout is not None
            layout = formal.layout
            if not program.state_of[name].trainable:
                layout = in_parts(layout) if levels.get(name) else gradientless(layout)
            layout, axes = joined_layout(layout, cls.mesh)
            zero = levels.get(name, 0) if summed_axes(layout, axes) else 0
            here = StateLayout(name, axes, layout, zero)
            there = kept.setdefault(name, here)
            mesh = joint_mesh(here.mesh, there.mesh)
            if on_mesh(here.layout, here.mesh, mesh) != on_mesh(there.layout, there.mesh, mesh):
                raise PlanError(
                    f"layer {layer.name!r} ({cls.strategy}) keeps {name!r} as {here.layout}, another layer of the "
                    f"stage as {there.layout}; give the layers that share it strategies that agree"
                )
    return tuple(kept.values())
