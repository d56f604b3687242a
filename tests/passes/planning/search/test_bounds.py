"""What the search relies on of the objective: a bound that no plan beats, and that more memory is never worse."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, fields

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from galvatron.costs.objective import Setting, evaluate_plan, memory_of_ranks
from galvatron.costs.sharing import Pace
from galvatron.ir.curves import Points
from galvatron.ir.strategy import Strategy
from galvatron.passes.planning.search.columns import Choice
from galvatron.passes.planning.search.fastest import fastest
from galvatron.passes.planning.search.problems import Problem
from galvatron.passes.planning.search.tables import TableBuilder
from galvatron.passes.planning.search.ties import choices_of_ties
from galvatron.schedules import Schedule
from tests.passes.planning.search.tables import STRATEGIES, TableModel, models
from tests.passes.planning.search.test_optimal import every_way


@settings(max_examples=200, deadline=None)
@given(
    models(),
    st.integers(1, 3),
    st.sampled_from([1, 2, 4]),
    st.sampled_from(["gpipe", "1f1b", "interleaved2", "zbv"]),
    st.sampled_from([(), ((1.0, 0.5), (6.0, 1.0)), ((3.0, 0.5), (6.0, 1.0))]),
    st.data(),
)
def test_no_plan_beats_the_bound(
    model: TableModel, degree: int, micro_batches: int, schedule: str, sharing: Points, data: st.DataObject
) -> None:
    count = len(model.classes)
    degree = min(degree, count)
    chosen = tuple(data.draw(st.sampled_from(STRATEGIES)) for _ in range(count))
    order = Schedule.parse(schedule)
    held = len(order.holders(degree))
    assume(held <= count and order.allows(degree, micro_batches))
    cuts = data.draw(st.sampled_from(list(itertools.combinations(range(1, count), held - 1))))
    stages = [chosen[a:b] for a, b in itertools.pairwise((0, *cuts, count))]
    ties = data.draw(st.sampled_from(list(every_way(model, chosen))))
    setting = Setting(16, micro_batches, schedule, degree, ties=ties, pace=Pace.of(sharing, degree, 6))
    step_time_s, reports = evaluate_plan(model, setting, stages)
    used = max(memory.total for memory in memory_of_ranks(setting, reports))
    among_others, alone = [STRATEGIES] * count, [(strategy,) for strategy in chosen]
    builders = TableBuilder.of(model, [Choice(setting, among_others), Choice(setting, alone)])
    least = [Problem.of(builder, used) for builder in builders]
    assert least[0].least_s <= least[1].least_s + 1e-9 <= step_time_s + 2e-9
    for problem in least:  # within the budget that the plan needs
        bounds = problem.glance(step_time_s * 2)
        assert bounds is not None and bounds.least_s <= step_time_s + 1e-9
        columns = bounds.columns(step_time_s + 1e-9) % len(problem.builder.strategies)
        possible = {problem.builder.strategies[column] for column in columns}
        assert possible >= set(chosen)


@dataclass(frozen=True)
class Asked(TableModel):
    """Remembers which conversions it was asked for."""

    conversions_asked: set[tuple[Strategy, Strategy]] = field(default_factory=set)

    def conversion_s(self, index: int, before: Strategy, after: Strategy, micro_batch: int) -> float:
        self.conversions_asked.add((before, after))
        return super().conversion_s(index, before, after, micro_batch)


@given(models(tied=False, layers=(2, 5)))
def test_moves_are_priced_between_meshes_that_neighbours_may_have(of: TableModel) -> None:
    model = Asked(**{one.name: getattr(of, one.name) for one in fields(of)})
    (builder,) = TableBuilder.of(model, [Choice(Setting(16, 2, "1f1b", 1), [STRATEGIES] * len(model.classes))])
    first = np.array([strategy == STRATEGIES[0] for strategy in builder.strategies])
    chain = builder.tables(1e9, np.stack([first, *([~first] * (len(model.classes) - 1))])).pipeline.chain
    assert all(after.axes != STRATEGIES[0].axes for _, after in model.conversions_asked)
    for layer, move in list(enumerate(chain.moves))[1:]:
        before, after = (chain.place[first if place == 0 else ~first] for place in (layer - 1, layer))
        priced = chain.move_s[move][np.ix_(before, after)]
        assert np.isfinite(priced).all()
        assert np.isinf(chain.move_s[move][:, chain.place[first]]).all()


@settings(max_examples=40, deadline=None)
@given(models(), st.integers(1, 3), st.sampled_from(["gpipe", "1f1b"]), st.integers(5, 150), st.integers(0, 60))
def test_more_memory_never_worsens_the_best_plan(
    model: TableModel, degree: int, schedule: str, budget: int, more: int
) -> None:
    setting = Setting(16, 2, schedule, min(degree, len(model.classes)))
    choices = list(choices_of_ties(model.tied(), setting, [STRATEGIES] * len(model.classes)))
    tight, wide = (fastest(TableBuilder.of(model, choices), most) for most in (budget, budget + more))
    if tight is not None:
        assert wide is not None
        assert evaluate_plan(model, *wide)[0] <= evaluate_plan(model, *tight)[0] + 1e-9
