"""A strategy of its own for every layer, on one stage and across stages; models with awkward flows of values."""

from __future__ import annotations

from itertools import cycle, islice

import pytest

from tests.parity.harness import check, layer_count

MODELS = [
    "gpt", "gpt2", "llama", "bert", "t5", "vit", "qwen3", "mixtral", "mistral", "gemma", "opt", "gpt-neox",
    "skips", "weighted", "shared", "encoder", "encoder-post-norm",
]  # fmt: skip
STRATEGIES = {4: ["dp4", "dp2-tp2", "tp2-dp2", "tp4", "tp2-dp2"], 2: ["dp2", "tp2", "dp2"], 1: ["dp1"]}


def mixture(layers: int, stages: int, first: int = 0) -> list[list[str]]:
    """Strategies in rotation, over stages of nearly equal numbers of layers."""
    choice = STRATEGIES[4 // stages]
    names = list(islice(cycle(choice[first:] + choice[:first]), layers))
    cuts = [layers * s // stages for s in range(stages + 1)]
    return [names[a:b] for a, b in zip(cuts, cuts[1:], strict=False)]


@pytest.mark.parametrize(("stages", "first"), [(1, 0), (1, 2), (2, 0), (2, 1), (4, 0)])
@pytest.mark.parametrize("model", MODELS)
def test_mixture_equals_eager(model: str, stages: int, first: int) -> None:
    layers = layer_count(model)
    if layers < stages:
        pytest.skip(f"{layers} layers for {stages} stages")
    check(model, mixture(layers, stages, first))


@pytest.mark.parametrize("plan", ["m2/dp2-tp2+sp", "m2/dp2-ulysses2", "pp2/m2/gpipe/tp2+sp", "pp2/m4/1f1b/ulysses2"])
@pytest.mark.parametrize("model", ["gpt", "llama", "bert", "t5", "mixtral", "encoder"])
def test_sequence_roles_equal_eager(model: str, plan: str) -> None:
    check(model, plan)


@pytest.mark.parametrize("model", ["gpt", "gpt2", "t5", "gpt-neox", "shared"])
def test_mixture_of_all_roles_equals_eager(model: str) -> None:
    strategies = cycle(["dp4", "dp2-tp2+sp", "ulysses2-dp2", "tp4", "dp2-ulysses2", "tp4+sp"])
    check(model, [list(islice(strategies, layer_count(model)))])
