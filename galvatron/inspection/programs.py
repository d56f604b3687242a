"""Programs made ready to be looked at: with layers, and under a plan."""

from __future__ import annotations

from dataclasses import replace

from galvatron.errors import PlanError
from galvatron.ir.cluster import Cluster
from galvatron.ir.plan import Plan
from galvatron.ir.planned import PlanShorthand, fitted, in_pieces
from galvatron.ir.program import Form, Layer, LayerClass, Program

WHOLE = "graph"
"""What the only layer of a captured program is called, as its text does."""


def as_layers(program: Program) -> Program:
    """The program with layers: a captured one as a single layer of all its ops."""
    if program.graph is None:
        return program
    graph = program.graph
    operands, state = (tuple(value.name for value in values) for values in (graph.inputs, graph.state))
    layer = Layer(WHOLE, WHOLE, operands, state, program.results)
    return replace(program, form=Form.CLUSTERED, graph=None, classes=(LayerClass(WHOLE, graph),), layers=(layer,))


def under_plan(program: Program, plan: Plan | PlanShorthand, cluster: Cluster | None) -> Program:
    """The program under a plan, whatever was decided about it before forgotten.

    Args:
        cluster: where; None is that of the program, if it has one.

    Raises:
        PlanError: the program is sharded already, or the plan does not fit it or the cluster.
    """
    if program.form > Form.PLANNED:
        raise PlanError(f"the program is {program.form} already, and its plan is in it: leave --plan out")
    if program.form is Form.CAPTURED:
        from galvatron.passes import FRONT_END
        from galvatron.passes.pipeline import Pipeline

        program = Pipeline.of(FRONT_END).run(program)
    batch = program.batch_size if isinstance(plan, PlanShorthand) else plan.global_batch_size
    fits = fitted(plan, program, cluster.world_size if cluster else plan.world_size, batch)
    where = cluster or program.cluster
    if where is not None and where.world_size != fits.world_size:
        where = None
    planned = replace(program, batch_size=batch, cluster=where, candidates=(), cuts=())
    return replace(in_pieces(planned, fits), form=Form.PLANNED, plan=fits)
