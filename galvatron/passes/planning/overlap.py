"""`overlap`: collectives of layers are started where they stand and waited for later, with computation in between.

Rows that go where something is that they choose go in chunks, where that gives their messages more beside them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from galvatron.ir.gradients import gradients
from galvatron.ir.overlap import Arrangement, arranged
from galvatron.ir.program import Form, LayerClass, LayerKind, Program
from galvatron.ir.skew import EVEN
from galvatron.machine import Machine
from galvatron.passes.base import Pass

if TYPE_CHECKING:
    from galvatron.costs.profile import Doing


@dataclass(frozen=True)
class Overlap(Pass):
    """Parts collectives into a start and a wait where that pays on the program's cluster, unless the plan says not to.

    Those of what a step that trains runs are looked at. What is chosen is what the costs of the plan were told with.
    """

    name = "overlap"
    needs, leaves = Form.SHARDED, Form.SHARDED

    def run(self, program: Program) -> Program:
        if not program.required_plan.overlap or program.inductor:
            return program
        planned = {layer.cls for layer in program.all_layers if layer.kind is LayerKind.PLANNED}
        machine, formals = Machine(program.required_cluster), gradients(program).formals
        classes = (
            replace(cls, graph=arranged(cls.graph, _arrangement(program, cls, machine, formals[cls.origin_name])))
            if cls.name in planned
            else cls
            for cls in program.classes
        )
        return replace(program, classes=tuple(classes))


def _arrangement(program: Program, cls: LayerClass, machine: Machine, differentiable: set[str]) -> Arrangement:
    # These load torch, as a list of passes should not.
    from galvatron.costs.composed import Layer
    from galvatron.costs.overlap import arranged, arrangement_that_pays
    from galvatron.costs.profile import profile_layer

    plan, strategy = program.required_plan, cls.strategy
    assert strategy is not None
    trained = cls.graph.without_outputs(program.only_given(cls))
    layer = Layer.of(trained, cls.mesh, frozenset(differentiable))
    batch = program.batch_size // plan.micro_batches / strategy.sample_shards

    def does(arrangement: Arrangement) -> Doing:
        kind, skew = machine.cluster.device.kind, plan.skew or EVEN
        return profile_layer(arranged(layer, arrangement), strategy.recompute, kind=kind, skew=skew)

    return arrangement_that_pays(layer, does, strategy.recompute, machine, batch)
