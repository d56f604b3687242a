"""The public functions on programs alone, without the model or ranks: `search`, `estimate` and `emit`.

What traces and trains models takes longer to import than most plans take to estimate, and is not needed here.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

from galvatron.answers.batches import doubling, most_throughput
from galvatron.answers.plan_cache import remembered
from galvatron.bugs import ours
from galvatron.costs.estimate import cost_model, estimate_plan, setting_of
from galvatron.costs.kept import kept_costs
from galvatron.costs.objective import StageReport, peak_bytes
from galvatron.errors import GalvatronError
from galvatron.forms import emitted, lowered, searched, valid, with_costs
from galvatron.ir.cluster import Cluster
from galvatron.ir.documents import shown
from galvatron.ir.plan import Plan
from galvatron.ir.planned import PlanShorthand, in_pieces, with_plan
from galvatron.ir.program import Program
from galvatron.ir.skew import ALL, EVEN, skew_problem
from galvatron.plain import plain_torch
from galvatron.plan_arguments import PlanLike, parsed_plan, read_memory, read_search, required_cluster
from galvatron.printing import html_table
from galvatron.runtime.optimizers import OptimizerFactory
from galvatron.search_options import SearchOptions
from galvatron.units import format_bytes, format_seconds


@dataclass(frozen=True)
class Estimate:
    """A prediction: seconds per step, peak bytes per device of each pipeline rank, and what both are made of.

    Where rows choose, such as tokens among experts, these are for the plan's `skew`: the rows of the rank that has most
    over the mean. `balanced` is what is predicted where all choose evenly, and no device needs more than `bound_bytes`,
    whatever they choose. All three are None where none do.
    """

    step_time_s: float
    peak_bytes: tuple[int, ...]
    stages: tuple[StageReport, ...]
    skew: float | None = None
    balanced: Estimate | None = None
    bound_bytes: tuple[int, ...] | None = None

    def _repr_html_(self) -> str:
        title = f"a step is predicted to take {format_seconds(self.step_time_s)}"
        if self.balanced is not None:
            title += f" under skew {self.skew:g}, {format_seconds(self.balanced.step_time_s)} where rows choose evenly"
        rows = [(str(rank), format_bytes(peak)) for rank, peak in enumerate(self.peak_bytes)]
        return html_table(title, ("pipeline rank", "peak memory of a device"), rows, "rr")


@plain_torch()
def search(
    program: Program,
    cluster: Cluster | str,
    *,
    memory: int | str | None = None,
    global_batch_size: int | tuple[int, int] | None = None,
    schedule: str | None = None,
    search: SearchOptions | None = None,
    inductor: bool = False,
    optimizer: OptimizerFactory | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Plan:
    """The plan with the shortest predicted step time that fits the memory of the cluster.

    Args:
        program: captured, or any later form up to planned.
        cluster: a `Cluster`, a preset such as `"a100-80g:2x8"`, or a file such as `"mine.toml"`.
        memory: budget per device, in bytes or like `"36GiB"`; None is the device's memory less a reserve.
        global_batch_size: samples per step; None is the size of the example batch. Of a range (first, last) the plan
            with the most samples per second is taken, among batches that double from the first one, and the last.
        schedule: the same as `search=SearchOptions(schedule=...)`.
        search: what is tried and what for (`SearchOptions`); None is everything, for the shortest step.
        inductor: whether layers will be compiled (see `compile`), which makes other kernels of them.
        optimizer: as in `compile`, for what it keeps and computes; None: what the program says, or AdamW.
        cache_dir: where plans and costs are kept, and found again if nothing has changed that they depend on; None:
            nowhere.

    Raises:
        BudgetError: nothing fits; names the nearest miss.
        VerifyError: the program breaks a rule of its form.
        GalvatronError: an argument is wrong.
    """
    budget, options, machines = read_memory(memory), read_search(search, schedule), required_cluster(cluster)

    def best(batch: int | None) -> Plan:
        with kept_costs(cache_dir):
            costed = with_costs(valid(program), machines, batch, inductor, optimizer)
            if cache_dir is None:
                return searched(costed, budget, options).required_plan
            return remembered(costed, budget, options, cache_dir).required_plan

    if not isinstance(global_batch_size, tuple):
        return best(global_batch_size)
    return most_throughput(doubling(*global_batch_size), best)


@plain_torch()
def estimate(
    program: Program,
    plan: PlanLike,
    cluster: Cluster | str,
    *,
    global_batch_size: int | None = None,
    inductor: bool = False,
    optimizer: OptimizerFactory | None = None,
    skew: float | None = None,
) -> Estimate:
    """Predicted step time and memory of a plan: the objective that `search` minimises, evaluated for one plan.

    Args:
        program, cluster, inductor, optimizer: see `search`.
        plan: see `compile`.
        global_batch_size: samples per step; None is what the plan says, or the size of the example batch.
        skew: see `SearchOptions`; None is what the plan says.

    Raises:
        PlanError: the plan does not fit the program, the cluster or the batch.
        VerifyError: the program breaks a rule of its form.
        GalvatronError: another argument is wrong.
    """
    own = parsed_plan(plan)
    if skew is not None and (problem := skew_problem(skew)):
        raise GalvatronError(f"skew {problem}, not {shown(skew)}")
    size = _batch_size(own, global_batch_size)
    costed = with_costs(valid(program), required_cluster(cluster), size, inductor, optimizer)
    planned = with_plan(costed, own)
    with ours("estimating a plan", planned):
        chosen = planned.required_plan
        if skew is not None and chosen.skew is not None:
            chosen = replace(chosen, skew=float(skew))
        found = _estimated(costed, chosen, chosen.skew)
        if chosen.skew is None:
            return found
        even, bound = (_estimated(costed, chosen, uneven) for uneven in (EVEN, ALL))
        return replace(found, skew=chosen.skew, balanced=even, bound_bytes=bound.peak_bytes)


def _estimated(costed: Program, plan: Plan, skew: float | None) -> Estimate:
    model = cost_model(in_pieces(costed, plan), skew, overlap=plan.overlap, made_for=plan.skew)
    step_time_s, stages = estimate_plan(costed, plan, model=model)
    return Estimate(step_time_s, peak_bytes(setting_of(costed, plan), stages), stages)


@plain_torch()
def emit(
    program: Program, plan: PlanLike, cluster: Cluster | str, *, global_batch_size: int | None = None
) -> dict[str, str]:
    """The Python source of every stage of a plan, by file name (`stage_0.py`, ...).

    Args:
        program, cluster: see `search`.
        plan: see `compile`.
        global_batch_size: see `estimate`.

    Raises:
        PlanError: the plan does not fit the program, the cluster or the batch.
        VerifyError: the program breaks a rule of its form.
        GalvatronError: another argument is wrong.
    """
    own = parsed_plan(plan)
    costed = with_costs(valid(program), required_cluster(cluster), _batch_size(own, global_batch_size))
    return emitted(lowered(with_plan(costed, own)))


def _batch_size(plan: Plan | PlanShorthand, asked: int | None) -> int | None:
    """Samples per step for which a plan is asked about."""
    return plan.global_batch_size if asked is None and isinstance(plan, Plan) else asked
