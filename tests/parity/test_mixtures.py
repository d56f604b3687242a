"""A strategy of its own for every layer, on one stage and across stages; models with awkward flows of values."""

from __future__ import annotations

from itertools import cycle, islice

import pytest

from tests.marks import some_slow
from tests.parity.harness import check, layer_count

ATTENTION = [
    "gpt", "gpt2", "llama", "bert", "roberta", "deberta", "deberta-v2-float32", "t5", "qwen3", "mixtral", "mistral",
    "gemma", "opt", "gpt-neox", "encoder", "encoder-post-norm",
]  # fmt: skip
MODELS = ["gpt", "gpt2", "llama", "bert", "t5", "vit", "mixtral", "skips", "weighted", "shared", "encoder"]
SEQUENCES = ["gpt", "llama", "vit-16"]
STRATEGIES = {4: ["dp4", "dp2-tp2", "tp2-dp2", "tp4", "tp2-dp2"], 2: ["dp2", "tp2", "dp2"], 1: ["dp1"]}
ALL_ROLES = {
    4: ["dp4", "dp2-tp2+sp", "cp4", "ulysses2-dp2", "tp4", "cp2-tp2", "dp2-ulysses2", "tp2-cp2", "tp4+sp", "dp2-cp2"],
    2: ["cp2", "tp2+sp", "ulysses2", "cp2", "dp2"],
}
"""Strategies that layers take in turn, by the number of devices of a stage."""

THREE_AXES = [
    "m2/dp2-cp2-tp2+sp", "m2/dp2-ulysses2-tp2", "m2/tp2-dp2-cp2", "m2/cp2-ulysses2-tp2", "m2/tp2+sp-cp2-dp2",
    "pp2/m2/gpipe/dp2-tp2", "pp2/m4/1f1b/tp2+sp-cp2", "pp2/m2/gpipe/ulysses2-dp2",
]  # fmt: skip


def mixture(layers: int, stages: int, choices: dict[int, list[str]], first: int = 0) -> list[list[str]]:
    """Strategies in rotation, over stages of nearly equal numbers of layers."""
    names = list(islice(cycle(choices[4 // stages]), first, first + layers))
    cuts = [layers * s // stages for s in range(stages + 1)]
    return [names[a:b] for a, b in zip(cuts, cuts[1:], strict=False)]


@pytest.mark.one_in(16)
@pytest.mark.parametrize(("stages", "first"), some_slow([(1, 0), (2, 0), (4, 0)], [(1, 2), (2, 1)]))
@pytest.mark.parametrize("model", some_slow(MODELS, ATTENTION))
def test_mixture_equals_eager(model: str, stages: int, first: int) -> None:
    layers = layer_count(model)
    if layers < stages:
        pytest.skip(f"{layers} layers for {stages} stages")
    check(model, mixture(layers, stages, STRATEGIES, first))


@pytest.mark.one_in(6)
@pytest.mark.parametrize(
    "plan",
    some_slow(
        ["m2/dp2-tp2+sp", "m2/dp2-ulysses2", "m2/cp2-tp2+sp", "pp2/m2/gpipe/cp2"],
        ["m2/dp2-cp2", "m2/cp2-ulysses2", "m2/ulysses2-tp2", "pp2/m2/gpipe/tp2+sp", "pp2/m4/1f1b/ulysses2"],
    ),
)  # fmt: skip
@pytest.mark.parametrize("model", some_slow(SEQUENCES, ATTENTION))
def test_sequence_roles_equal_eager(model: str, plan: str) -> None:
    check(model, plan)


@pytest.mark.one_in(2)
@pytest.mark.parametrize(("stages", "first"), some_slow([(1, 0), (2, 0)], [(1, 2), (1, 5)]))
@pytest.mark.parametrize("model", some_slow(["gpt", "shared"], ATTENTION))
def test_mixture_of_all_roles_equals_eager(model: str, stages: int, first: int) -> None:
    check(model, mixture(layer_count(model), stages, ALL_ROLES, first))


@pytest.mark.slow
@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("model", ["llama-8-heads", "llama-1-key-head"])
def test_replicated_key_heads_beside_other_layers(model: str, first: int) -> None:
    choices = {4: ["tp4", "dp2-tp2", "tp4+sp", "tp2-dp2"], 2: ["tp2"]}
    check(model, mixture(layer_count(model), 1, choices, first))


@pytest.mark.one_in(2)
@pytest.mark.parametrize("plan", some_slow(THREE_AXES[:1], THREE_AXES))
@pytest.mark.parametrize("model", ["gpt", "llama"])
def test_three_axes_equal_eager(model: str, plan: str) -> None:
    check(model, plan)
