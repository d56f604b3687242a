"""A vocabulary that embedding and head share, and that no number of ranks divides: in slices or whole, and never to be
told apart from one device."""

from __future__ import annotations

import pytest

from galvatron.ir.planned import tied_layers
from tests.marks import some_slow
from tests.parity.harness import check, costed, layer_count
from tests.parity.test_mixtures import mixture

MODELS = ["gpt2-tied-101", "t5-101", "gemma-101", "bert-101"]
PLANS = ["tp2", "m2/tp4+sp", "pp2/m4/1f1b/tp2", "tp2+sp", "tp4", "m2/dp2-tp2", "m2/tp2-dp2", "pp2/m4/1f1b/tp2+sp",
         "m2/cp2-tp2", "m2/ulysses2-tp2+sp", "m2/dp2-tp2-zero1", "m2/tp2-dp2-zero3",
         "pp2/m4/1f1b/dp2-zero2"]  # fmt: skip


@pytest.mark.one_in(3)
@pytest.mark.parametrize("plan", some_slow(PLANS[:3], PLANS))
@pytest.mark.parametrize("model", some_slow(MODELS[:1], MODELS))
def test_equals_eager(model: str, plan: str) -> None:
    check(model, plan)


@pytest.mark.parametrize(
    "ends",
    some_slow(
        ["dp2-tp2 tp2-dp2", "tp4 tp4"],
        ["tp4 dp4", "dp4 tp4+sp", "tp2-dp2 tp2-dp2", "tp4 tp4+sp", "dp2-tp2-zero3 dp2-tp2", "dp4-zero2 tp2-dp2-zero2"],
    ),
)
@pytest.mark.parametrize("model", some_slow(MODELS[:1], MODELS))
def test_blocks_unlike_the_ends_equal_eager(model: str, ends: str) -> None:
    """First and last layer are alike or not, whatever lies between; the second embedding of T5 is as the first."""
    first, last = ends.split()
    count = layer_count(model)
    middle = mixture(count - 2, 1, {4: ["dp4", "dp2-tp2", first]})[0]
    check(model, [[first, *middle, last]])


@pytest.mark.parametrize("strategies", some_slow(["tp2 dp2"], ["dp2 tp2", "tp2+sp tp2", "tp2 tp2"]))
@pytest.mark.parametrize("model", some_slow(MODELS[:1], MODELS))
def test_ends_on_two_stages_equal_eager(model: str, strategies: str) -> None:
    first, last = strategies.split()
    before = layer_count(model) // 2
    after = layer_count(model) - before
    check(model, [[first] * before, ["dp2"] * (after - 1) + [last]])


@pytest.mark.parametrize(
    "stages", some_slow(["tp4", "dp2-zero3 dp2-zero3"], ["dp2-tp2-zero2", "tp2+sp tp2+sp", "dp4-zero1"])
)
@pytest.mark.parametrize("model", some_slow(MODELS[:1], MODELS))
def test_what_a_plan_keeps_whole_though_all_layers_are_alike_equals_eager(model: str, stages: str) -> None:
    count, strategies = layer_count(model), stages.split()
    sizes = [count] if len(strategies) == 1 else [count // 2, count - count // 2]
    whole = tuple((name, None) for name in tied_layers(costed(model)[0]))
    assert whole
    check(model, [[strategy] * size for strategy, size in zip(strategies, sizes, strict=True)], ties=whole)
