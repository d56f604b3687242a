"""The least memory that any plan takes."""

from __future__ import annotations

from collections.abc import Sequence

from galvatron.costs.objective import evaluate_plan, peak_bytes
from galvatron.passes.planning.search.fastest import fastest
from galvatron.passes.planning.search.tables import TableBuilder
from galvatron.passes.planning.search.watch import Watch

_ANY = 0.999
"""A gap with which nearly the first plan that fits will do."""

_PRECISION = 1 / 1024


def least_budget(builders: Sequence[TableBuilder], budget_bytes: int, watch: Watch) -> int:
    """A budget that some plan fits, and no plan one that is smaller by more than a thousandth; the budget given, if
    none fits that.

    Looked for among schedules with a stage per device: others hold no fewer micro-batches.

    Args:
        watch: is told of plans with ever less memory.
    """
    builders = [builder for builder in builders if not builder.joint] or builders
    least, enough = 0, _needed(builders, budget_bytes, watch)
    if enough is None:
        return budget_bytes
    while enough - least > enough * _PRECISION:
        tried = (least + enough) // 2
        needed = _needed(builders, tried, watch)
        least, enough = (tried, enough) if needed is None else (least, needed)
    return enough


def _needed(builders: Sequence[TableBuilder], budget_bytes: int, watch: Watch) -> int | None:
    """The bytes of some plan that fits a budget; None if there is no such plan."""
    own = Watch()
    found = fastest(builders, budget_bytes, gap=_ANY, watch=own)
    if found is None:
        return None
    watch.found(own.best_s, own.best)
    setting, stages = found
    return max(peak_bytes(setting, evaluate_plan(builders[0].model, setting, stages)[1]))
