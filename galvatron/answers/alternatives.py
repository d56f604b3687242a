"""What else there is: the best plan of each pipeline degree and number of micro-batches, and plans with something."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from galvatron.answers.question import Question, seconds_of
from galvatron.errors import PlanError, StrategyError
from galvatron.ir.plan import Plan
from galvatron.ir.program import Cut
from galvatron.ir.strategy import Strategy
from galvatron.passes.planning.constraints import Constraint
from galvatron.passes.planning.search import DEFAULT_GAP
from galvatron.passes.planning.search.fastest import fastest
from galvatron.passes.planning.search.tables import TableBuilder
from galvatron.solver import least_s


def alternatives(question: Question, count: int) -> tuple[Plan, ...]:
    """The best plans of so many pairs of pipeline degree and micro-batches, the fastest first."""
    problem = question.problem
    groups: dict[tuple[int, int, str], list[TableBuilder]] = {}
    for builder in problem.builders:
        setting = builder.setting
        groups.setdefault((setting.pipeline_degree, setting.micro_batches, setting.schedule), []).append(builder)
    bounds = {
        key: min(least_s(builder.free(problem.budget_bytes)) for builder in group) for key, group in groups.items()
    }
    found: list[Plan] = []
    for key in sorted(groups, key=bounds.__getitem__):
        if len(found) >= count and bounds[key] >= seconds_of(found[count - 1]):
            break
        best = fastest(groups[key], problem.budget_bytes, gap=DEFAULT_GAP, width=question.width)
        if best is not None:
            found.append(problem.plan(*best))
        found.sort(key=seconds_of)
    return tuple(found[:count])


@dataclass(frozen=True)
class WhyNot:
    """Why a plan does not have what a constraint says.

    Attributes:
        plan: the best one whose layers have it; None if there is none.
        more_s: seconds that it takes more than the plan asked about.
        cuts: of strategies that have it, which rules took off how many, and one of the reasons.
        refusal: why there is no such plan.
    """

    asked: str
    plan: Plan | None = None
    more_s: float = 0.0
    cuts: tuple[tuple[str, int, str], ...] = ()
    refusal: str = ""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "asked": self.asked,
            "plan": self.plan and str(self.plan),
            "step_time_s": self.plan and self.plan.step_time_s,
            "more_s": self.more_s,
            "cuts": [list(cut) for cut in self.cuts],
            "refusal": self.refusal,
        }


def why_not(question: Question, asked: str) -> WhyNot:
    """Why the plan of a question does not have something: `tp8`, `layers.0=zero3`.

    Raises:
        StrategyError, PlanError: it is no constraint, or about no layer.
    """
    constraint = Constraint.parse(asked)
    cuts = _cuts(constraint, question.candidates.cuts)
    options = replace(question.options, require=(*question.options.require, asked))
    try:
        plan = question.searched(options=options)
    except PlanError as error:
        if not any(constraint.concerns(layer.name) for layer in question.program.planned_layers):
            raise
        return WhyNot(asked, cuts=cuts, refusal=str(error))
    return WhyNot(asked, plan, seconds_of(plan) - seconds_of(question.best), cuts)


def _cuts(constraint: Constraint, cuts: tuple[Cut, ...]) -> tuple[tuple[str, int, str], ...]:
    """Of strategies with the traits that rules took off: by rule how many, and the first reason."""
    found: dict[str, tuple[int, str]] = {}
    for cut in cuts:
        strategy = _strategy_of(cut)
        if strategy is not None and constraint.holds(strategy):
            count, reason = found.get(cut.rule, (0, cut.reason))
            found[cut.rule] = (count + 1, reason)
    return tuple((rule, count, reason) for rule, (count, reason) in found.items())


def _strategy_of(cut: Cut) -> Strategy | None:
    """The strategy that a cut is about; None if it is about many."""
    text = cut.branch.partition("/")[2].partition(" ")[0]
    try:
        return Strategy.parse(text) if text else None
    except StrategyError:
        return None
