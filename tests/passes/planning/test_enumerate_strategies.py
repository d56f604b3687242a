"""The decision tree: its leaves, its text, the branches that do not exist."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from galvatron.errors import PassError, PlanError
from galvatron.ir.cluster import Cluster
from galvatron.ir.spmd import chosen_matrices
from galvatron.ir.strategy import Strategy
from galvatron.ir.types import BATCH, BatchSizes, Length
from galvatron.passes.planning.enumerate_strategies import EnumerateStrategies
from galvatron.passes.planning.prune import Prune
from galvatron.passes.planning.tree import RULES, Decision, divisors, grow
from tests.ir.programs import costed
from tests.parity import harness


def test_leaves_of_eight_devices_in_both_orders() -> None:
    plain = EnumerateStrategies(roles=("dp", "tp"), zero=(0,), recompute=("none",), heuristics=False)
    leaves = {str(s) for s in plain.leaves_of(8)}
    assert leaves == {"dp8-tp1", "dp4-tp2", "dp2-tp4", "dp1-tp8", "tp4-dp2", "tp2-dp4"}


def test_leaves_with_more_roles_and_choices() -> None:
    enumerate_ = EnumerateStrategies(roles=("dp", "tp", "tp+sp"), zero=(0, 3), recompute=("none", "full"))
    leaves = {str(s) for s in enumerate_.leaves_of(2)}
    axes = ("dp2-tp1", "dp2-tp1-zero3", "dp1-tp2", "dp1-tp2+sp")
    assert leaves == {f"{a}{r}" for a in axes for r in ("", "-recompute")}


@pytest.mark.parametrize(("world", "unpruned", "pruned"), [(8, 34, 22), (16, 73, 37), (32, 136, 56), (64, 229, 79)])
def test_the_published_tree(world: int, unpruned: int, pruned: int) -> None:
    """Data parallelism, the same with parameters in parts, and tensor parallelism, below each pipeline degree (Miao et
    al., Galvatron, PVLDB 16(3), 2022): with the rule that a layer has one kind of data parallelism, and without."""
    decisions = (Decision("dp", 0), Decision("dp", 3), Decision("tp"))
    rule = next(rule for rule in RULES if rule.name == "one-zero-level")
    trees = [grow(world // degree, decisions, [rule]) for degree in divisors(world)]
    assert sum(tree.unpruned for tree in trees) == unpruned
    assert sum(len(grow(world // degree, decisions, []).leaves) for degree in divisors(world)) == unpruned
    assert sum(len(tree.leaves) for tree in trees) == pruned


def test_recomputation_doubles_the_published_tree() -> None:
    space = EnumerateStrategies(roles=("dp", "tp"), zero=(0, 3), recompute=("none", "full"), heuristics=False)
    assert sum(len(space.leaves_of(devices)) for devices in divisors(8)) == 44


def test_what_the_rules_take_off_is_counted() -> None:
    decisions = Decision.every(("dp", "tp", "tp+sp", "cp"), (0, 3))
    tree, whole = grow(8, decisions), grow(8, decisions, [])
    assert tree.unpruned == len(whole.leaves)
    assert set(tree.leaves) == {axes for axes in whole.leaves if not any(rule.broken(axes) for rule in RULES)}


def test_roles_that_talk_within_a_layer_are_tried_in_one_order() -> None:
    space = EnumerateStrategies(roles=("dp", "tp", "ulysses", "cp"), zero=(0,), recompute=("none",))
    leaves, every = (set(map(str, each.leaves_of(8))) for each in (space, replace(space, heuristics=False)))
    assert leaves < every
    mixed = {leaf for leaf in every if all(f"{role}2" in leaf for role in ("ulysses", "cp"))}
    assert mixed & leaves == {
        "dp2-cp2-ulysses2-tp1", "cp2-dp2-ulysses2-tp1", "cp2-ulysses2-dp2-tp1", "dp1-cp2-ulysses2-tp2"
    }  # fmt: skip
    assert {leaf for leaf in every if leaf not in leaves} >= {
        "dp1-ulysses4-cp2-tp1",
        "dp1-tp2-cp4",
        "tp2-dp2-cp2",
        "tp2-dp4",
    }


@given(st.integers(1, 60), st.sampled_from([("dp",), ("dp", "tp"), ("dp", "tp+sp", "cp")]))
def test_leaves_use_all_devices_once_and_print(devices: int, roles: tuple[str, ...]) -> None:
    leaves = list(EnumerateStrategies(roles=roles, zero=(0,), recompute=("none",)).leaves_of(devices))
    assert len(set(leaves)) == len(leaves)
    for leaf in leaves:
        assert leaf.devices == devices
        assert Strategy.parse(str(leaf)) == leaf
        assert math.prod(axis.size for axis in leaf.mesh) == devices


def test_no_leaf_without_a_role_for_every_device() -> None:
    assert EnumerateStrategies(roles=()).leaves_of(6) == ()
    one = EnumerateStrategies(roles=("dp",), zero=(0,), recompute=("none",))
    assert [str(s) for s in one.leaves_of(6)] == ["dp6-tp1"]


def test_a_free_length_is_not_cut() -> None:
    (first, *others), length = costed().inputs, Length("S", 6, BatchSizes())
    free = replace(first, type=replace(first.type, shape=(BATCH, length)))
    found = EnumerateStrategies(roles=("dp", "tp", "tp+sp", "ulysses", "cp")).run(
        replace(costed(), inputs=(free, *others))
    )
    assert all(s.sequence_pieces == 1 for c in found.candidates for s in c.strategies)
    assert {cut.branch for cut in found.cuts if cut.rule == "lengths-stay-whole"} == {"*/cp", "*/tp+sp", "*/ulysses"}


@given(st.integers(1, 500))
def test_divisors(number: int) -> None:
    assert list(divisors(number)) == [d for d in range(1, number + 1) if number % d == 0]


def test_refusals() -> None:
    with pytest.raises(PlanError, match="has no cluster"):
        EnumerateStrategies().run(replace(costed(), cluster=None))
    with pytest.raises(PassError, match="unknown role 'tpp'; did you mean 'tp'"):
        EnumerateStrategies(roles=("tpp",)).run(costed())


def test_experts_are_shared_out_where_rows_choose_them() -> None:
    """Four of them: three ranks would have nothing to divide."""
    program = replace(harness.costed("mixtral-batched_mm")[0], cluster=Cluster.parse("a100-80g:1x6"), batch_size=12)
    space = EnumerateStrategies(roles=("dp", "ep"), zero=(0,), recompute=("none",), pipeline_degrees=(1,))
    found = space.run(program)
    leaves = {c.cls: {str(s) for s in c.strategies} for c in found.candidates}
    with_experts = [cls.name for cls in program.classes if chosen_matrices(cls.graph)]
    assert with_experts and set(with_experts) < leaves.keys()
    for cls, own in leaves.items():
        assert any("ep2" in leaf for leaf in own) == (cls in with_experts)
    (cls,) = with_experts
    assert {"dp3-ep2-tp1", "dp2-ep3-tp1", "dp1-ep6-tp1"} <= leaves[cls]
    pruned = Prune().run(found)
    assert {str(s) for c in pruned.candidates if c.cls == cls for s in c.strategies} == {
        "dp6-tp1", "dp3-ep2-tp1", "ep2-dp3-tp1"
    }  # fmt: skip
    reasons = [cut.reason for cut in pruned.cuts if cut.rule == "ep-divides-experts"]
    assert "4 experts cannot be divided over ep3" in reasons
