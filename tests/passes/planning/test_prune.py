"""Pruning rules: what each cuts and why."""

from __future__ import annotations

from dataclasses import replace

import pytest

from galvatron.costs.estimate import cost_model
from galvatron.errors import PassError
from galvatron.ir.cluster import Cluster
from galvatron.ir.program import Program
from galvatron.ir.strategy import Strategy
from galvatron.passes.planning.enumerate_strategies import EnumerateStrategies
from galvatron.passes.planning.prune import Prune, least_state_bytes
from tests.ir.programs import costed


def candidates(cluster: str, batch: int = 8) -> Program:
    program = replace(costed(), cluster=Cluster.parse(cluster), batch_size=batch)
    return EnumerateStrategies(roles=("dp", "tp"), zero=(0,), recompute=("none",)).run(program)


def cuts_by(program: Program, rule: str) -> dict[str, str]:
    return {cut.branch: cut.reason for cut in program.cuts if cut.rule == rule}


def left(program: Program, degree: int = 1) -> set[str]:
    return {str(s) for c in program.candidates if c.pipeline_degree == degree for s in c.strategies}


def test_tensor_parallelism_stays_in_the_node_unless_asked() -> None:
    program = candidates("a100-80g:2x2")
    pruned = Prune().run(program)
    assert cuts_by(pruned, "tp-stays-in-node") == {
        "pp1/dp1-tp4": "groups of 4 ranks, 1 apart, cross nodes",
        "pp1/tp2-dp2": "groups of 2 ranks, 2 apart, cross nodes",
    }
    assert not cuts_by(Prune(heuristics=False).run(program), "tp-stays-in-node")
    assert not cuts_by(Prune(without=("tp-stays-in-node",)).run(program), "tp-stays-in-node")


def test_state_that_does_not_fit() -> None:
    program = candidates("a100-80g:1x2")
    pruned = Prune(memory=1000).run(program)  # type: ignore[arg-type]  # Bytes is an int
    reasons = cuts_by(pruned, "memory-lower-bound-exceeds-budget")
    assert "pp1/dp2-tp1" in reasons and "the parameters of layer embedding alone need" in reasons["pp1/dp2-tp1"]
    assert not cuts_by(Prune().run(program), "memory-lower-bound-exceeds-budget")


@pytest.mark.parametrize("text", ["dp4", "dp2-tp2-zero1", "dp2-tp2-zero2", "dp4-zero3", "ulysses2-dp2-zero3"])
def test_no_layer_holds_less_state_than_the_bound(text: str) -> None:
    program = replace(costed(), cluster=Cluster.parse("a100-80g:1x4"), batch_size=8)
    model, strategy = cost_model(program), Strategy.parse(text)
    whole = tuple((name, None) for name in model.tied())
    for index, layer in enumerate(program.planned_layers):
        least = least_state_bytes(program, layer, strategy)
        assert 0 < least <= model.layer(index, strategy, 8, whole).state_bytes * (1 + 1e-9)


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
