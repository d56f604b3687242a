"""The prediction for a plan, from the code whose result the search minimises."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from galvatron.costs.kept import KeptCosts, keeping
from galvatron.costs.model import CostModel
from galvatron.costs.objective import Setting, StageReport, evaluate_plan, peak_bytes
from galvatron.costs.sharing import Pace
from galvatron.ir.ops.table import as_shipped, derived
from galvatron.ir.plan import Plan
from galvatron.ir.planned import epilogue, fitted, in_pieces
from galvatron.ir.program import Form, Program
from galvatron.ir.skew import EVEN
from galvatron.ir.text import print_program
from galvatron.ir.versions import digest

if TYPE_CHECKING:
    from galvatron.costs.sharded import ShardedCostModel


def cost_model(
    program: Program, skew: float | None = None, *, overlap: bool = True, made_for: float | None = None
) -> CostModel:
    """The costs of a clustered program on its cluster, read off its sharded graphs, or off what is kept of these
    (`costs.kept`).

    Args:
        skew: how unevenly rows choose (`galvatron.ir.skew`); None where none do.
        overlap: whether collectives of layers run beside computation where that pays, as a plan says.
        made_for: the skew by which that is chosen, if another.

    Raises:
        PlanError: the program has no cluster.
    """
    clustered = replace(program, form=Form.CLUSTERED, candidates=(), cuts=(), plan=None)
    kept, skew = keeping(), EVEN if skew is None else skew
    made_for = skew if made_for is None else made_for
    model = kept and _kept_model(clustered, skew, overlap, made_for, kept.folder)
    if kept is None or model is None:
        return _cost_model(clustered, skew, overlap, made_for)
    kept.models.append(model)
    return model


@derived(maxsize=4)
def _cost_model(program: Program, skew: float, overlap: bool, made_for: float) -> CostModel:
    even = _even_costs(program, overlap)
    return even if skew == made_for == EVEN else even.under(skew, made_for=made_for)


@derived(maxsize=2)
def _even_costs(program: Program, overlap: bool) -> ShardedCostModel:
    """One model for the passes that ask in turn: sharding and profiling a class takes longer than anything else."""
    from galvatron.costs.sharded import ShardedCostModel

    return ShardedCostModel(program, program.required_cluster, overlap=overlap)


@derived(maxsize=2)
def _kept_model(program: Program, skew: float, overlap: bool, made_for: float, folder: Path) -> KeptCosts | None:
    """The same with what is kept in a folder; None for a program whose operators this process alone knows."""
    text = print_program(program)
    if not as_shipped(text):
        return None
    name = digest(text, f"{skew} {overlap} {made_for}")
    make = partial(_cost_model, program, skew, overlap, made_for)
    return KeptCosts(make, len(program.planned_layers), name, folder)


def estimate_plan(
    program: Program, plan: Plan, *, model: CostModel | None = None
) -> tuple[float, tuple[StageReport, ...]]:
    """Predicted step time in seconds of a plan, and a report per stage, at the program's batch size on its cluster.

    Args:
        model: the costs to use; those of the sharded program under the plan's skew when None.

    Raises:
        PlanError: the plan does not fit the program, the cluster's number of devices or the batch.
    """
    world_size = program.cluster.world_size if program.cluster is not None else plan.world_size
    plan = fitted(plan, program, world_size, program.batch_size)
    model = model or cost_model(in_pieces(program, plan), plan.skew, overlap=plan.overlap)
    return evaluate_plan(model, setting_of(program, plan), plan.stages)


def setting_of(program: Program, plan: Plan) -> Setting:
    """What the plan says besides its stages, for the program's batch."""
    ends = bool(epilogue(program))
    pace = pace_of(program, plan.pipeline_degree)
    fixed_bytes = workspace_bytes(program)
    return Setting(
        program.batch_size, plan.micro_batches, plan.schedule, plan.pipeline_degree, ends, plan.ties, pace, fixed_bytes
    )


def workspace_bytes(program: Program) -> int:
    """What libraries keep of the memory of each device of the program's cluster."""
    return 0 if program.cluster is None else program.cluster.device.workspace_bytes


def pace_of(program: Program, degree: int) -> Pace:
    """How fast pipeline ranks are while others wait, on the program's cluster."""
    cluster = program.cluster
    return Pace.even(degree) if cluster is None else Pace.of(cluster.sharing, degree, cluster.world_size)


def with_predictions(plan: Plan, program: Program, model: CostModel) -> Plan:
    """The plan with its predicted step time, peak memory and cluster written in."""
    step_time_s, stages = estimate_plan(program, plan, model=model)
    return replace(
        plan,
        cluster=str(program.cluster or ""),
        step_time_s=step_time_s,
        peak_bytes=peak_bytes(setting_of(program, plan), stages),
    )
