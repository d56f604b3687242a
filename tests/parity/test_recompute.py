"""Layers whose activations are computed again in the backward."""

from __future__ import annotations

import pytest
import torch

from tests.marks import some_slow
from tests.parity.harness import BATCH_SIZE, check, job_of, layer_count, planned, run_step, subject
from tests.parity.test_mixtures import mixture
from tests.ranks import run_ranks

KINDS = ["recompute", "recompute=selective", "recompute=alternate", "recompute=attention"]
PLANS = [
    "m2/dp2-tp2", "m2/dp2-tp2+sp", "m2/ulysses2-dp2", "m2/cp2-dp2", "m2/dp4",
    "pp2/m4/1f1b/tp2", "pp2/m4/1f1b/tp2+sp", "pp2/m4/1f1b/ulysses2", "pp2/m4/1f1b/cp2", "pp2/m4/1f1b/dp2",
]  # fmt: skip
WRITTEN_OUT = [
    "m2/dp2-tp2", "m2/dp2-tp2+sp", "m2/ulysses2-dp2", "m2/cp2-dp2", "m2/dp4-zero3", "pp2/m4/1f1b/tp2",
    "pp2/m4/interleaved2/dp1", "pp2/m4/zbv/dp2-zero2",
]  # fmt: skip
DROPOUT = ["m2/dp2-tp2", "pp2/m2/gpipe/tp2+sp", "m2/cp2-ulysses2"]
STRATEGIES = {
    4: [
        "dp2-tp2-recompute", "dp2-tp2", "cp4-recompute=selective", "tp4+sp-recompute",
        "dp2-ulysses2-recompute=selective", "dp2-tp2+sp-recompute=attention",
    ],
    2: ["tp2-recompute=selective", "tp2", "dp2-recompute", "cp2-recompute", "ulysses2"],
}  # fmt: skip


@pytest.mark.one_in(3)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("plan", ["m2/dp2-tp2", "m2/cp2-ulysses2", "pp2/m4/1f1b/tp2+sp"])
def test_recomputed_layers_equal_eager(plan: str, kind: str) -> None:
    check("llama", f"{plan}-{kind}")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("model", ["llama", "gpt2", "bert", "t5", "mixtral", "shared", "weighted"])
def test_every_plan_equals_eager(model: str, plan: str, kind: str) -> None:
    if model in ("shared", "weighted") and not plan.endswith(("tp2", "dp2", "dp4")):
        pytest.skip("no sequence to shard")
    check(model, f"{plan}-{kind}")


@pytest.mark.one_in(6)
@pytest.mark.parametrize("plan", WRITTEN_OUT)
def test_attention_written_out_is_computed_again(plan: str) -> None:
    check("gpt2-written-out", f"{plan}-recompute=attention")


@pytest.mark.one_in(3)
@pytest.mark.parametrize("model", ["gpt", "deberta", "encoder"])
def test_other_attentions_are_computed_again(model: str) -> None:
    check(model, "m2/dp2-tp2-recompute=attention")


@pytest.mark.parametrize(("model", "stages"), [("llama", 1), ("gpt2", 2)])
def test_layers_that_differ_equal_eager(model: str, stages: int) -> None:
    check(model, mixture(layer_count(model), stages, STRATEGIES))


@pytest.mark.one_in(4)
@pytest.mark.parametrize("plan", DROPOUT)
@pytest.mark.parametrize("model", some_slow(["gpt2-dropout"], ["gpt2-written-out-dropout"]))
def test_a_replay_drops_the_same_elements(model: str, plan: str) -> None:
    """Loss and gradients under dropout are those of the same plan that keeps its activations."""
    batch = subject(model).batch(BATCH_SIZE, 1)
    kept, *others = (
        run_ranks(run_step, 4, job_of(model, planned(model, plan + kind)), batch)[0]
        for kind in ("", *(f"-{kind}" for kind in KINDS))
    )
    for loss, gradients in others:
        assert loss == kept[0]
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, kept[1][name], rtol=1e-12, atol=1e-14)
