"""What brings a program from one form to the next: `api` goes this way, as far as its caller asks."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from galvatron.bugs import in_passes, ours
from galvatron.codegen import emit as emit_stages
from galvatron.errors import GalvatronError
from galvatron.instruments import around
from galvatron.ir import limits
from galvatron.ir.cluster import Cluster
from galvatron.ir.documents import shown
from galvatron.ir.ops.table import derived
from galvatron.ir.planned import without_plan
from galvatron.ir.program import Form, Program
from galvatron.ir.verify import verify
from galvatron.passes import FRONT_END, LOWERING, PLANNING
from galvatron.passes.pipeline import Pipeline
from galvatron.passes.planning.search.misses import check_fixed
from galvatron.runtime.optimizers import OptimizerFactory
from galvatron.search_options import SearchOptions
from galvatron.update_rules import with_rules

_LOG = logging.getLogger("galvatron")


def valid(program: Program) -> Program:
    """The program, which keeps every rule of its form.

    Raises:
        GalvatronError: it is none, or breaks a rule.
    """
    if not isinstance(program, Program):
        raise GalvatronError(
            f"a program is what galvatron.capture returns, not {type(program).__name__}; the text of a .gir file is "
            "read by galvatron.ir.text.parse_program"
        )
    _verified(program)
    return program


@derived(maxsize=4)
def _verified(program: Program) -> None:
    """Verifies a program that is asked about again and again, such as for the estimates of many plans, once."""
    verify(program)


def with_costs(
    program: Program,
    cluster: Cluster,
    global_batch_size: int | None,
    inductor: bool = False,
    optimizer: OptimizerFactory | None = None,
) -> Program:
    """The program with costs on a cluster, whatever was decided about it before forgotten.

    Args:
        optimizer: whose costs are those of the update; None, as the program says.

    Raises:
        GalvatronError: it is sharded already, or the batch size is not positive.
    """
    if program.form > Form.PLANNED:
        raise GalvatronError(f"the program is {program.form} already; start from one that is {Form.PLANNED} at most")
    if program.form is Form.CAPTURED:
        program = passed(FRONT_END, program)
    batch_size = program.batch_size if global_batch_size is None else global_batch_size
    if type(batch_size) is not int or not 1 <= batch_size <= limits.SAMPLES:
        raise GalvatronError(
            f"global_batch_size must be a positive whole number of samples, at most {limits.SAMPLES}, "
            f"not {shown(batch_size)}"
        )
    if program.form is Form.CLUSTERED:
        program = passed(PLANNING[:1], program)
    if inductor:
        program = replace(program, inductor=True)
    if optimizer is not None:
        program = with_rules(program, optimizer, at_once=cluster.device.kind != "cpu")
    return without_plan(program, cluster, batch_size)


def searched(program: Program, memory_bytes: int | None, options: SearchOptions) -> Program:
    """The program of costs with the fastest plan.

    Raises:
        GalvatronError: no plan runs, or none fits the budget.
    """
    if memory_bytes is None:
        memory_bytes = program.required_cluster.default_budget_bytes
    check_fixed(program, memory_bytes)
    given = {name: dict(own) for name, own in options.by_pass().items()}
    for name in ("prune", "search"):
        given[name]["memory"] = memory_bytes
    return passed(PLANNING[1:], program, given)


def lowered(planned: Program) -> Program:
    """The staged program of a plan; what verifying it costs is logged.

    Raises:
        VerifyError: it breaks a rule: nothing is generated from it.
    """
    staged = passed(LOWERING, planned)
    start = time.perf_counter()
    verify(staged)
    _LOG.info("verified the program of %d stages in %.3f s", len(staged.stages), time.perf_counter() - start)
    return staged


def passed(names: Sequence[str], program: Program, options: Mapping[str, Mapping[str, Any]] | None = None) -> Program:
    """The program after some passes."""
    return Pipeline.of(names, options).run(program, [in_passes, *around()])


def emitted(staged: Program) -> dict[str, str]:
    """The text of a module for each stage, by its file's name."""
    with ours("generating code", staged):
        return emit_stages(staged)
