"""Pruning rules: what each cuts and why."""

from __future__ import annotations

from dataclasses import replace

import pytest

import galvatron
from galvatron.costs.estimate import cost_model
from galvatron.errors import GalvatronError, PassError
from galvatron.forms import with_costs
from galvatron.ir.cluster import Cluster
from galvatron.ir.program import Program
from galvatron.ir.strategy import Strategy
from galvatron.partition.context import Partitioner
from galvatron.passes.planning.enumerate_strategies import EnumerateStrategies
from galvatron.passes.planning.prune import Prune, least_state_bytes
from tests.debugging import planted
from tests.ir.programs import costed


def candidates(cluster: str, batch: int = 8) -> Program:
    program = replace(costed(), cluster=Cluster.parse(cluster), batch_size=batch)
    return EnumerateStrategies(roles=("dp", "tp"), zero=(0,), recompute=("none",), heuristics=False).run(program)


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


def test_sequences_are_cut_into_equal_pieces() -> None:
    """They are of 6 tokens: what would cut them into other pieces is refused where a class is sharded."""
    program = replace(costed(), cluster=Cluster.parse("a100-80g:1x4"), batch_size=8)
    whole = EnumerateStrategies(recompute=("none",), zero=(0,), pipeline_degrees=(1,)).run(program)
    pruned = Prune(heuristics=False).run(whole)
    assert cuts_by(pruned, "roles-divide-sequence")["pp1/dp1-cp4-tp1"] == "a sequence of 6 cannot be cut into 8 pieces"
    partitioner = Partitioner(program, program.required_cluster)
    ties = tuple((tie.name, None) for tie in partitioner.ties)
    for before, after in zip(whole.candidates, pruned.candidates, strict=True):
        assert after.strategies
        for strategy in before.strategies:
            if strategy in after.strategies:
                partitioner.shard(after.cls, strategy, ties)
            else:
                with pytest.raises(GalvatronError, match="divide"):
                    partitioner.shard(after.cls, strategy, ties)


def test_state_that_does_not_fit() -> None:
    program = candidates("a100-80g:1x2")
    layers = {layer.cls: layer for layer in reversed(program.planned_layers)}.values()
    least = {layer.name: least_state_bytes(program, layer, Strategy.parse("dp2-tp1")) for layer in layers}
    layer = max(least, key=least.__getitem__)
    pruned = Prune(memory=int(least[layer]) - 1).run(program)  # type: ignore[arg-type]  # Bytes is an int
    reasons = cuts_by(pruned, "memory-lower-bound-exceeds-budget")
    assert f"the parameters of layer {layer} alone need" in next(iter(reasons.values()))
    assert all("dp2-tp1" in branch for branch in reasons)
    assert not cuts_by(Prune().run(program), "memory-lower-bound-exceeds-budget")


def test_where_nothing_fits_the_search_says_what_is_missing() -> None:
    program = candidates("a100-80g:1x2")
    assert not cuts_by(Prune(memory=1).run(program), "memory-lower-bound-exceeds-budget")  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["dp4", "dp2-tp2-zero1", "dp2-tp2-zero2", "dp4-zero3", "ulysses2-dp2-zero3"])
def test_no_layer_holds_less_state_than_the_bound(text: str) -> None:
    program = replace(costed(), cluster=Cluster.parse("a100-80g:1x4"), batch_size=8)
    model, strategy = cost_model(program), Strategy.parse(text)
    whole = tuple((name, None) for name in model.tied())
    for index, layer in enumerate(program.planned_layers):
        least = least_state_bytes(program, layer, strategy)
        assert 0 < least <= model.layer(index, strategy, 8, whole).state_bytes * (1 + 1e-9)


def test_the_bound_is_one_for_all_that_cut_alike() -> None:
    program = candidates("a100-80g:2x2")
    for layer in program.planned_layers[:2]:
        least: dict[tuple[int, int, int], set[float]] = {}
        for strategy in next(c.strategies for c in program.candidates if c.cls == layer.cls):
            key = strategy.devices, strategy.parameter_shards, strategy.zero
            least.setdefault(key, set()).add(least_state_bytes(program, layer, strategy))
        assert len(least) > 1
        assert all(len(sizes) == 1 for sizes in least.values())


def test_state_that_does_not_fit_goes_where_it_is() -> None:
    """Of one class a strategy may be gone, and left to others."""
    program = candidates("a100-80g:1x2")
    layers = {layer.cls: layer for layer in program.planned_layers}
    least = {cls: least_state_bytes(program, layer, Strategy.parse("dp2-tp1")) for cls, layer in layers.items()}
    budget = int(max(least.values())) - 1
    pruned = Prune(memory=budget).run(program)  # type: ignore[arg-type]  # Bytes is an int
    left = {c.cls for c in pruned.candidates if c.pipeline_degree == 1 and Strategy.parse("dp2-tp1") in c.strategies}
    assert left == {cls for cls, size in least.items() if size <= budget}
    assert 0 < len(left) < len(layers)
    gone = ", ".join(f"@{cls}" for cls in layers if cls not in left)
    assert f"pp1/dp2-tp1 {gone}" in cuts_by(pruned, "memory-lower-bound-exceeds-budget")


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


def test_a_sequence_that_is_read_in_parts_is_cut_into_as_many() -> None:
    """Halves of eight tokens: two ranks with folded slices would need four parts. Other layers may be cut so."""
    program = galvatron.capture(*planted.net())
    plan = galvatron.search(program, "a100-80g:1x2")
    costed = with_costs(program, Cluster.parse("a100-80g:1x2"), 4)
    pruned = Prune(heuristics=False).run(EnumerateStrategies(roles=("cp",), zero=(0,), recompute=("none",)).run(costed))
    assert cuts_by(pruned, "roles-divide-sequence") == {
        "pp1/dp1-cp2-tp1 @blocks": "a sequence of 2 cannot be cut into 4 pieces"
    }
    assert plan.step_time_s
