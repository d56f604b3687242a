"""Pruning rules: what each cuts and why, and that sound rules keep an optimum."""

from __future__ import annotations

import itertools
from dataclasses import fields, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from galvatron.costs.memory import Memory
from galvatron.costs.model import LayerCost
from galvatron.costs.objective import Setting, evaluate_plan
from galvatron.errors import PassError
from galvatron.ir.cluster import Cluster
from galvatron.ir.program import Program
from galvatron.ir.strategy import Strategy
from galvatron.passes.planning.enumerate_strategies import EnumerateStrategies
from galvatron.passes.planning.prune import RULES, Branch, Prune
from galvatron.passes.planning.search import fastest, ways
from tests.ir.programs import costed
from tests.passes.planning.search.tables import STRATEGIES, Table, TableModel, models

DP4, TP4, MIXED, RECOMPUTED = map(Strategy.parse, ("dp4", "dp1-tp4", "dp2-tp2", "dp2-tp2-recompute"))


def candidates(cluster: str, batch: int = 8) -> Program:
    program = replace(costed(), cluster=Cluster.parse(cluster), batch_size=batch)
    return EnumerateStrategies().run(program)


def cuts_by(program: Program, rule: str) -> dict[str, str]:
    return {cut.branch: cut.reason for cut in program.cuts if cut.rule == rule}


def left(program: Program, degree: int = 1) -> set[str]:
    return {str(s) for c in program.candidates if c.pipeline_degree == degree for s in c.strategies}


DOMINANCE = "dominated-in-time-and-memory"
WITHOUT_DOMINANCE = (DOMINANCE,)


def test_tensor_parallelism_stays_in_the_node_unless_asked() -> None:
    program = candidates("a100-80g:2x2")
    pruned = Prune(without=WITHOUT_DOMINANCE).run(program)
    assert cuts_by(pruned, "tp-stays-in-node") == {
        "pp1/dp1-tp4": "groups of 4 ranks, 1 apart, cross nodes",
        "pp1/tp2-dp2": "groups of 2 ranks, 2 apart, cross nodes",
    }
    assert not cuts_by(Prune(heuristics=False, without=WITHOUT_DOMINANCE).run(program), "tp-stays-in-node")
    assert not cuts_by(Prune(without=("tp-stays-in-node",)).run(program), "tp-stays-in-node")


def test_state_that_does_not_fit() -> None:
    program = candidates("a100-80g:1x2")
    pruned = Prune(memory=1000, without=WITHOUT_DOMINANCE).run(program)  # type: ignore[arg-type]  # Bytes is an int
    reasons = cuts_by(pruned, "memory-lower-bound-exceeds-budget")
    assert "pp1/dp2-tp1" in reasons and "layer embedding alone needs" in reasons["pp1/dp2-tp1"]
    assert not cuts_by(Prune(without=WITHOUT_DOMINANCE).run(program), "memory-lower-bound-exceeds-budget")


def test_every_cut_branch_is_gone_and_no_other() -> None:
    program = candidates("a100-80g:2x2")
    pruned = Prune().run(program)
    for degree in (1, 2, 4):
        gone = {c.branch.removeprefix(f"pp{degree}/") for c in pruned.cuts if c.branch.startswith(f"pp{degree}/")}
        assert left(program, degree) - left(pruned, degree) == gone
        assert left(pruned, degree)


def test_unknown_rule() -> None:
    with pytest.raises(PassError, match="did you mean 'tp-stays-in-node'"):
        Prune(without=("tp-in-node",)).run(candidates("a100-80g:1x1"))


@settings(max_examples=60, deadline=None)
@given(models(), st.integers(1, 2), st.sampled_from([1, 2]), st.integers(30, 200))
def test_sound_rules_keep_an_optimum(model: TableModel, degree: int, micro_batches: int, budget: int) -> None:
    check_soundness(model, STRATEGIES, degree, micro_batches, budget)


def check_soundness(
    model: TableModel, options: tuple[Strategy, ...], degree: int, micro_batches: int, budget: int
) -> list[Strategy]:
    """What dominance cuts, after checking that this leaves an optimum."""
    program = replace(costed(), batch_size=4 * micro_batches)
    assert program.cluster is not None
    removed = [s for s, _ in RULES[DOMINANCE].cut(Branch(program, program.cluster, model, degree, options, None))]
    pruned = tuple(s for s in options if s not in removed)
    assert pruned
    setting = Setting(4 * micro_batches, micro_batches, "gpipe", degree)
    before, after = (
        fastest(model, list(ways(model.tied(), setting, [left] * len(model.classes))), budget, 0.0)
        for left in (options, pruned)
    )
    assert (before is None) == (after is None)
    if before is not None and after is not None:
        assert evaluate_plan(model, *after)[0] == pytest.approx(evaluate_plan(model, *before)[0])
    return removed


def test_the_dominated_strategy_is_cut() -> None:
    """A model in which one strategy is worse in everything."""
    figures = zip((MIXED, DP4, TP4), (1.0, 2.0, 2.0), strict=True)
    costs = {(0, s): LayerCost(figure, figure, saved_bytes=figure) for s, figure in figures}
    # Dividing no micro-batch in four, DP4 and MIXED cannot do everything that TP4 does.
    assert cut_by_dominance((DP4, TP4, MIXED), costs, costs, ()) == [DP4]


def test_a_strategy_that_is_better_only_where_all_that_it_repeats_is_on_one_stage_or_none_is_kept() -> None:
    """On a stage with one of two earlier layers a third pays more: it is the first whose parameter is still paid."""
    costs = {
        (0, TP4): LayerCost(1.0, 1.0, state=Memory(parameters=8.0)),
        (0, MIXED): LayerCost(1.0, 1.0, state=Memory(parameters=9.0)),
    }
    apart = {TP4: 0.5, MIXED: 0.25}
    assert cut_by_dominance((TP4, MIXED), costs, costs, ((0, 2), (1, 2)), apart) == []
    assert cut_by_dominance((TP4, MIXED), costs, costs, ((0, 2), (1, 2))) == [MIXED]


def test_where_there_are_more_ways_to_keep_ties_than_a_search_tries_nothing_is_compared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    costs = {(0, TP4): LayerCost(1.0, 1.0), (0, MIXED): LayerCost(2.0, 2.0)}
    monkeypatch.setattr("galvatron.ir.limits.WAYS", 2)
    assert cut_by_dominance((TP4, MIXED), costs, costs, ((0, 1),)) == [MIXED]
    assert cut_by_dominance((TP4, MIXED), costs, costs, ((0, 1), (2, 3))) == []


def test_ties_of_layers_further_off_do_not_multiply_what_is_compared() -> None:
    shares = tuple((i, i + 1) for i in range(0, 16, 2))
    costs = {(0, s): LayerCost(1.0, 1.0) for s in (TP4, MIXED)}
    model = TableModel((0,) * 16, costs, {}, {}, {}, shares, costs)
    program = costed()
    assert program.cluster is not None
    branch = Branch(program, program.cluster, model, 1, (TP4, MIXED), None)
    # A layer has a tie of its own, and one of a neighbour.
    assert [len(branch.ways(MIXED, index)) for index in range(16)] == [2, *[4] * 14, 2]
    assert len({ties for index in range(16) for ties in branch.ways(MIXED, index)}) == 2 * len(shares)


def _size(figure: float | Memory) -> float:
    return figure.total if isinstance(figure, Memory) else figure


ALIKE_IN_PAIRS = (TP4, MIXED, RECOMPUTED, Strategy.parse("dp1-tp4-recompute"))


@settings(max_examples=60, deadline=None)
@given(models(options=ALIKE_IN_PAIRS), st.booleans(), st.integers(1, 2), st.integers(30, 200))
def test_strategies_that_leave_ties_together_leave_an_optimum(
    model: TableModel, moves: bool, degree: int, budget: int
) -> None:
    """Costs never fall from the better to the worse of two; with costly conversions one of them alone stays."""

    def ordered(table: Table) -> Table:
        found = dict(table)
        for kind in {kind for kind, _ in table}:
            for better, worse in ((TP4, MIXED), (ALIKE_IN_PAIRS[3], RECOMPUTED)):
                a, b = table[kind, better], table[kind, worse]
                same = {"repeated", "contention", "bucket_bytes", "late_bytes"}
                figures = [field.name for field in fields(LayerCost) if field.name not in same]
                most = {name: max(getattr(a, name), getattr(b, name), key=_size) for name in figures}
                found[kind, worse] = replace(a, **most)
        return found

    same = dict.fromkeys(ALIKE_IN_PAIRS, 1.0)
    model = replace(model, costs=ordered(model.costs), together=ordered(model.together), first_part={})
    model = replace(model, boundary=same, shared=same)
    if moves:
        model = replace(model, conversions=dict.fromkeys(model.conversions, 0.0), shared=dict.fromkeys(same, 0.0))
    removed = check_soundness(model, ALIKE_IN_PAIRS, degree, 1, budget)
    assert not moves or {MIXED, RECOMPUTED} <= {*removed}


@pytest.mark.parametrize(("shares", "cut"), [((), [MIXED]), (((0, 1),), [])])
def test_a_strategy_that_is_better_for_ties_in_parts_is_kept(
    shares: tuple[tuple[int, ...], ...], cut: list[Strategy]
) -> None:
    """It costs more as long as ties are whole, and less where they are in parts."""
    costs = {(0, TP4): LayerCost(1.0, 1.0), (0, MIXED): LayerCost(2.0, 2.0)}
    together = {**costs, (0, MIXED): LayerCost(0.5, 0.5)}
    assert cut_by_dominance((TP4, MIXED), costs, together, shares) == cut


@pytest.mark.parametrize(("shares", "cut"), [((), [MIXED]), (((0, 1),), [])])
def test_a_strategy_beside_which_others_keep_ties_is_kept(
    shares: tuple[tuple[int, ...], ...], cut: list[Strategy]
) -> None:
    """Where some layers of a tie may be recomputed, the others cannot make way alone for what keeps it otherwise."""
    options = (TP4, MIXED, RECOMPUTED)
    figures = ((2.0, 2.0), (3.0, 2.0), (4.0, 1.0))  # seconds, and bytes, of which recomputation has fewest
    costs = {(0, s): LayerCost(time, 0.0, saved_bytes=size) for s, (time, size) in zip(options, figures, strict=True)}
    assert cut_by_dominance(options, costs, costs, shares) == cut


def test_strategies_that_keep_ties_alike_are_cut_together() -> None:
    """Each for one that is better, which keep ties alike too."""
    figures = zip(ALIKE_IN_PAIRS, ((2.0, 2.0), (3.0, 2.0), (4.0, 1.0), (3.0, 1.0)), strict=True)
    costs = {(0, s): LayerCost(time, 0.0, saved_bytes=size) for s, (time, size) in figures}
    assert cut_by_dominance(ALIKE_IN_PAIRS, costs, costs, ((0, 1),)) == [MIXED, RECOMPUTED]


def test_a_strategy_that_is_worse_however_ties_are_kept_is_cut() -> None:
    costs = {(0, TP4): LayerCost(1.0, 1.0), (0, MIXED): LayerCost(2.0, 2.0)}
    assert cut_by_dominance((TP4, MIXED), costs, costs, ((0, 1),)) == [MIXED]


def cut_by_dominance(
    options: tuple[Strategy, ...],
    costs: Table,
    together: Table,
    shares: tuple[tuple[int, ...], ...],
    first_part: dict[Strategy, float] | None = None,
) -> list[Strategy]:
    conversions = dict.fromkeys(itertools.permutations(options, 2), 0.0)
    none = dict.fromkeys(options, 0.0)
    classes = (0,) * (1 + max((layer for layers in shares for layer in layers), default=1))
    model = TableModel(classes, costs, conversions, none, none, shares, together, first_part or {})
    program = costed()
    assert program.cluster is not None
    branch = Branch(program, program.cluster, model, 1, options, None)
    return [strategy for strategy, _ in RULES[DOMINANCE].cut(branch)]
