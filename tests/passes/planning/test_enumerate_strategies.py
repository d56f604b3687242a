"""The decision tree: its leaves, its text, the branches that do not exist."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from galvatron.errors import PassError, PlanError
from galvatron.ir.strategy import Strategy
from galvatron.passes.planning.enumerate_strategies import EnumerateStrategies, axis_roles, divisors
from tests.ir.programs import costed


def test_leaves_of_eight_devices_in_both_orders() -> None:
    leaves = {str(s) for s in EnumerateStrategies().leaves_of(8)}
    assert leaves == {"dp8-tp1", "dp4-tp2", "dp2-tp4", "dp1-tp8", "tp4-dp2", "tp2-dp4"}


def test_leaves_with_more_roles_and_choices() -> None:
    enumerate_ = EnumerateStrategies(roles=("dp", "tp", "tp+sp"), zero=(0, 3), recompute=("none", "full"))
    leaves = {str(s) for s in enumerate_.leaves_of(2)}
    axes = ("dp2-tp1", "dp1-tp2", "dp1-tp2+sp")
    assert leaves == {f"{a}{z}{r}" for a in axes for z in ("", "-zero3") for r in ("", "-recompute")}


@given(st.integers(1, 60), st.sampled_from([("dp",), ("dp", "tp"), ("dp", "tp+sp", "cp")]))
def test_leaves_use_all_devices_once_and_print(devices: int, roles: tuple[str, ...]) -> None:
    leaves = list(EnumerateStrategies(roles=roles).leaves_of(devices))
    assert len(set(leaves)) == len(leaves)
    for leaf in leaves:
        assert leaf.devices == devices
        assert Strategy.parse(str(leaf)) == leaf
        assert math.prod(axis.size for axis in leaf.mesh) == devices


def test_no_leaf_without_a_role_for_every_device() -> None:
    assert list(axis_roles(6, ())) == []
    assert [str(a) for (a,) in axis_roles(6, ("dp",))] == ["dp6"]


@given(st.integers(1, 500))
def test_divisors(number: int) -> None:
    assert divisors(number) == [d for d in range(1, number + 1) if number % d == 0]


def test_refusals() -> None:
    with pytest.raises(PlanError, match="has no cluster"):
        EnumerateStrategies().run(replace(costed(), cluster=None))
    with pytest.raises(PassError, match="unknown role 'tpp'; did you mean 'tp'"):
        EnumerateStrategies(roles=("tpp",)).run(costed())
