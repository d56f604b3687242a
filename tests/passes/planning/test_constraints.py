"""What a user asks of strategies: what each constraint means, and which layers it is about."""

from __future__ import annotations

import pytest

from galvatron.errors import PlanError, StrategyError
from galvatron.ir.strategy import Strategy
from galvatron.passes.planning.constraints import Constraint, Constraints
from galvatron.passes.planning.enumerate_strategies import EnumerateStrategies

LEAVES = EnumerateStrategies().leaves_of(8)


@pytest.mark.parametrize(
    ("text", "strategies", "others"),
    [
        ("tp2", ["dp2-tp2", "tp2-dp2", "dp4-tp2+sp"], ["dp4-tp1", "dp1-tp4"]),
        ("tp2+sp", ["dp4-tp2+sp"], ["dp2-tp2", "dp1-tp4+sp"]),
        ("tp+sp", ["dp1-tp4+sp", "dp4-tp2+sp"], ["dp2-tp2", "dp8-tp1"]),
        ("tp>2", ["dp1-tp4", "dp1-tp4+sp"], ["dp2-tp2", "dp8-tp1"]),
        ("tp<=2", ["dp2-tp2", "dp8-tp1"], ["dp1-tp4"]),
        ("cp", ["cp2-tp1", "dp2-cp2-tp1"], ["dp4-tp1"]),
        ("ep2", ["dp2-ep2", "ep2-tp2"], ["ep4", "dp4-tp1"]),
        ("ep>2", ["ep4", "dp2-ep8"], ["dp2-ep2", "dp4-tp1"]),
        ("zero3", ["dp8-zero3", "dp8-zero3-recompute"], ["dp8", "dp8-zero2"]),
        ("zero<2", ["dp8", "dp8-zero1"], ["dp8-zero2", "dp8-zero3"]),
        ("recompute", ["dp8-recompute"], ["dp8", "dp8-recompute=selective"]),
        ("recompute=none", ["dp8"], ["dp8-recompute"]),
        ("dp4-tp2-zero3", ["dp4-tp2-zero3", "tp2-dp4-zero3-recompute"], ["dp4-tp2", "dp4-zero3"]),
    ],
)
def test_traits(text: str, strategies: list[str], others: list[str]) -> None:
    constraint = Constraint.parse(text)
    assert constraint.concerns("head") and constraint.concerns("layers.0")
    assert all(constraint.holds(Strategy.parse(s)) for s in strategies)
    assert not any(constraint.holds(Strategy.parse(s)) for s in others)


@pytest.mark.parametrize(
    ("text", "layers", "others"),
    [
        ("layers.0=tp2", ["layers.0"], ["layers.1", "layers.01", "head"]),
        ("layers.*=zero3-recompute", ["layers.0", "layers.11"], ["head"]),
        ("head=recompute=selective", ["head"], ["layers.0"]),
        ("*=tp2", ["head", "layers.0"], []),
    ],
)
def test_layers(text: str, layers: list[str], others: list[str]) -> None:
    constraint = Constraint.parse(text)
    assert all(map(constraint.concerns, layers)) and not any(map(constraint.concerns, others))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tq2", "unknown trait 'tq2'; did you mean 'tp2'"),
        ("layers.0=", "unknown trait ''"),
        ("tp2-zzero3", "unknown trait 'zzero3'; did you mean 'zero3'"),
        ("cp2+sp", "unknown trait"),
        ("zero3+sp", "unknown trait"),
        ("recompute=", "unknown trait"),
        ("recompute=ful", "unknown trait 'ful'"),
        ("", "unknown trait"),
    ],
)
def test_what_is_none(text: str, message: str) -> None:
    with pytest.raises(StrategyError, match=message.replace("+", r"\+")):
        Constraint.parse(text)


def test_what_is_required_and_forbidden_is_all_that_is_left_out() -> None:
    constraints = Constraints.parse(["layers.*=tp2", "zero<3"], ["head=recompute", "dp>2"])
    left = constraints.about("layers.3").left(LEAVES)
    assert set(left) == {s for s in LEAVES if s.degree("tp") == 2 and s.zero < 3 and s.degree("dp") <= 2}
    head = constraints.about("head").left(LEAVES)
    assert set(head) == {s for s in LEAVES if s.zero < 3 and s.degree("dp") <= 2 and s.recompute != "full"}
    assert Constraints().about("head").left(LEAVES) == LEAVES


def test_a_layer_that_is_none_is_refused() -> None:
    layers = ["embedding", "layers.0", "layers.1", "head"]
    Constraints.parse(["layers.*=tp2"], ["h*=zero3"]).check(layers)
    with pytest.raises(PlanError, match=r"no layer 'layer\.0'; did you mean 'layers\.0'"):
        Constraints.parse(["layer.0=tp2"], []).check(layers)
    with pytest.raises(PlanError, match=r"no layer 'blocks\.\*'; known: embedding, head, "):
        Constraints.parse([], ["blocks.*=tp2"]).check(layers)
