"""Ways out where no plan fits: what least would have to change, each tried by a search."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from galvatron.costs.estimate import workspace_bytes
from galvatron.errors import GalvatronError, PlanError
from galvatron.forms import searched, with_costs
from galvatron.ir.plan import Plan
from galvatron.ir.program import Program
from galvatron.ir.strategy import AxisRole, Strategy
from galvatron.passes.planning.prune import least_state_bytes
from galvatron.passes.planning.tree import divisors
from galvatron.search_options import SearchOptions
from galvatron.units import format_bytes, format_seconds

COUNT = 3

_PLENTY = 2**50
"""More memory than a device has."""


@dataclass(frozen=True)
class WayOut:
    """A change with which there is a plan."""

    change: str
    plan: Plan

    def __str__(self) -> str:
        seconds = "" if self.plan.step_time_s is None else f": {format_seconds(self.plan.step_time_s)} a step"
        return f"{self.change}{seconds}, {self.plan}"


def ways_out(program: Program, memory_bytes: int, options: SearchOptions) -> tuple[WayOut, ...]:
    """The cheapest changes with which a plan fits, at most three: first those that only let the search try more, then
    a smaller batch, then more memory, and last more devices.

    Args:
        program: with costs, on its cluster and for its batch.
    """
    if memory_bytes < workspace_bytes(program):  # whatever else changes
        return ()
    found: list[WayOut] = []
    for change, search in _tried(program, memory_bytes, options):
        try:
            found.append(WayOut(change, search()))
        except GalvatronError:
            continue
        if len(found) == COUNT:
            break
    return tuple(found)


def shared_state_bytes(program: Program) -> float:
    """What a device holds of parameters at least, whatever the batch is: its share, where all devices share all."""
    world_size = program.required_cluster.world_size
    finest = Strategy((AxisRole("dp", world_size),), zero=3)
    told, total = set[str](), 0.0
    for layer in program.planned_layers:
        parameters = program.parameters.intersection(layer.state)
        if not parameters & told:  # else what it has to itself is left out
            total += least_state_bytes(program, layer, finest)
        told |= parameters
    return total


def _tried(program: Program, memory_bytes: int, options: SearchOptions) -> Iterator[tuple[str, Callable[[], Plan]]]:
    def of(program: Program, memory_bytes: int, options: SearchOptions) -> Plan:
        return searched(program, memory_bytes, options).required_plan

    for name in ("require", "forbid", "max_tp", "pipeline_degree", "schedule", "micro_batches", *_SPACE):
        default = getattr(SearchOptions, name)
        if getattr(options, name) != default:
            freed = replace(options, **{name: default})
            yield f"without {name}={getattr(options, name)!r}", lambda freed=freed: of(program, memory_bytes, freed)
    sizes = divisors(program.batch_size)[:-1] if shared_state_bytes(program) <= memory_bytes else []
    for size in reversed(sizes):
        smaller = replace(program, batch_size=size)
        try:
            plan = of(smaller, memory_bytes, options)
        except GalvatronError:
            continue
        yield f"with a global batch of {size}", lambda plan=plan: plan
        break
    try:
        plan = of(program, _PLENTY, replace(options, objective="memory"))
    except PlanError:
        return
    budget = plan.search.budget_bytes
    more = f"with {format_bytes(budget)} per device, {format_bytes(budget - memory_bytes)} more"
    yield more, lambda: plan
    cluster = program.required_cluster
    outer = cluster.levels[-1]
    twice = replace(
        cluster, name=f"{cluster.name} twice", levels=(*cluster.levels[:-1], replace(outer, parts=2 * outer.parts))
    )
    if not cluster.collectives and not cluster.sharing:
        larger = with_costs(program, twice, program.batch_size)
        yield f"on {twice.world_size} such devices", lambda: of(larger, memory_bytes, options)


_SPACE = ("roles", "zero", "recompute")
