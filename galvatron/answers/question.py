"""What is asked about: a program on a cluster, a plan for it, and the search that it is compared with."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import cached_property

from galvatron.errors import ClusterError, PlanError
from galvatron.forms import passed, searched, with_costs
from galvatron.ir.cluster import Cluster
from galvatron.ir.plan import Plan
from galvatron.ir.planned import PlanShorthand, fitted, read_plan
from galvatron.ir.program import Program
from galvatron.passes import PLANNING
from galvatron.passes.planning.search import DEFAULT_WIDTH, Problem, Search
from galvatron.plan_arguments import required_cluster
from galvatron.search_options import SearchOptions


@dataclass(frozen=True)
class Question:
    """A plan for a program, under a budget, beside what a search with some options finds.

    Attributes:
        program: with costs, on its cluster and for its batch.
        plan: with the time and memory that it takes there.
        memory_bytes: of each device.
        options: of the searches that answers are checked by.
    """

    program: Program
    plan: Plan
    memory_bytes: int
    options: SearchOptions

    @staticmethod
    def asked(
        program: Program,
        plan: Plan | str | os.PathLike[str],
        cluster: Cluster | str | None = None,
        memory_bytes: int | None = None,
        other: Plan | None = None,
    ) -> Question:
        """A question about a plan, the one in a file, or one strategy for all layers, on a cluster or on that which it
        names.

        Args:
            other: the plan that it is compared with, whose cluster and batch it has where it names none.

        Raises:
            ClusterError: there is no cluster.
            PlanError: the plan does not fit the program or the cluster.
        """
        own = plan if isinstance(plan, Plan) else read_plan(os.fspath(plan))
        said = [one for one in (own, other) if isinstance(one, Plan)]
        where = cluster or next((one.cluster for one in said if one.cluster), None)
        if where is None:
            name = "the plan" if isinstance(plan, Plan) else plan
            raise ClusterError(f"{name} says no cluster: name one, such as 'a100-80g:2x8'")
        batch = said[0].global_batch_size if said else program.batch_size
        return Question.about(program, own, required_cluster(where), memory_bytes, batch=batch)

    @staticmethod
    def about(
        program: Program,
        plan: Plan | PlanShorthand,
        cluster: Cluster,
        memory_bytes: int | None = None,
        options: SearchOptions | None = None,
        batch: int | None = None,
    ) -> Question:
        """A question about a plan, within the budget that it was searched for unless one is given.

        Args:
            batch: samples of a step; None is those of the plan, or of the program where that says none.

        Raises:
            PlanError: the plan does not fit the program or the cluster.
        """
        if batch is None:
            batch = plan.global_batch_size if isinstance(plan, Plan) else program.batch_size
        costed = with_costs(program, cluster, batch)
        told = fitted(plan, costed, cluster.world_size, batch)
        budget = memory_bytes or told.search.budget_bytes or cluster.default_budget_bytes
        options = options or SearchOptions()
        if options.skew is None:
            options = replace(options, skew=told.skew)
        return Question(costed, told, budget, options)

    @cached_property
    def candidates(self) -> Program:
        """The program with the strategies that a search tries, and those that rules have cut."""
        own = {name: dict(options) for name, options in self.options.by_pass().items() if name != "search"}
        own["prune"]["memory"] = self.memory_bytes
        return passed(PLANNING[1:3], self.program, own)

    @cached_property
    def problem(self) -> Problem:
        """What a search has to choose from."""
        own = self.options.by_pass()["search"]
        return Search(**own, memory=self.memory_bytes).problem(self.candidates)  # type: ignore[arg-type]  # Bytes is an int

    @property
    def width(self) -> int:
        """How many partial choices answers follow, as its searches do."""
        return self.options.width or DEFAULT_WIDTH

    @cached_property
    def best(self) -> Plan:
        """What a search finds."""
        return self.searched()

    def searched(
        self, *, memory_bytes: int | None = None, cluster: Cluster | None = None, options: SearchOptions | None = None
    ) -> Plan:
        """What a search finds where something is different.

        Raises:
            PlanError: nothing.
        """
        program = self.program if cluster is None else replace(self.program, cluster=cluster)
        budget = self.memory_bytes if memory_bytes is None else memory_bytes
        return searched(program, budget, self.options if options is None else options).required_plan


def seconds_of(plan: Plan) -> float:
    """The predicted seconds of a plan that has them.

    Raises:
        PlanError: it has none.
    """
    if plan.step_time_s is None:
        raise PlanError("nobody has estimated the plan: it has no step_time_s")
    return plan.step_time_s
