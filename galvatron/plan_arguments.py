"""Arguments about plans, clusters and memory, which need neither a model nor ranks: read, and refused where they are
wrong."""

from __future__ import annotations

import os
from typing import Any

from galvatron.errors import ClusterError, GalvatronError, PlanError
from galvatron.ir.cluster import Cluster
from galvatron.ir.plan import Plan
from galvatron.ir.planned import PlanShorthand, read_plan
from galvatron.profiler.clusters import named_cluster
from galvatron.search_options import SearchOptions
from galvatron.units import parse_bytes

PlanLike = Plan | str | os.PathLike[str]


def no_plan(plan: object) -> PlanError:
    """The error for something that is no plan."""
    kind = type(plan).__name__ if plan != "" else "empty text"
    return PlanError(f"a plan is a Plan, a path or a shorthand like 'pp2/m4/1f1b/dp1-tp2', not {kind}")


def parsed_plan(plan: PlanLike) -> Plan | PlanShorthand:
    """What the user means by a plan, not yet checked against anything.

    Raises:
        PlanError, ParseError, StrategyError: it cannot be read.
    """
    if plan == "":
        raise no_plan(plan)
    if isinstance(plan, str):
        return read_plan(plan)
    if isinstance(plan, os.PathLike):
        return Plan.load(plan)
    if isinstance(plan, Plan):
        return plan
    raise no_plan(plan)


def read_memory(memory: int | str | None) -> int | None:
    budget = None if memory is None else parse_bytes(memory)
    if budget == 0:
        raise GalvatronError("memory is the budget per device, which cannot be 0; leave it out for what the device has")
    return budget


def read_search(search: Any, schedule: Any = None) -> SearchOptions:
    """The options of a search; `schedule` is one of them that may be given by itself."""
    if search is None:
        return SearchOptions(schedule=schedule)
    if not isinstance(search, SearchOptions):
        raise GalvatronError(f"search must be a galvatron.SearchOptions, not {type(search).__name__}")
    if schedule is not None:
        raise GalvatronError("schedule is one of the options of search: give it there")
    return search


def read_cluster(cluster: Cluster | str | None) -> Cluster | None:
    if cluster is None or isinstance(cluster, Cluster):
        return cluster
    if isinstance(cluster, str):
        return named_cluster(cluster)
    raise ClusterError(f"a cluster is a Cluster or a preset like 'a100-80g:2x8', not {type(cluster).__name__}")


def required_cluster(cluster: Cluster | str) -> Cluster:
    found = read_cluster(cluster)
    if found is None:
        raise ClusterError("a cluster is needed: a Cluster or a preset like 'a100-80g:2x8'")
    return found
