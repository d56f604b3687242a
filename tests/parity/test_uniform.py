"""One strategy for all layers: loss and every gradient of the whole batch, in float64."""

from __future__ import annotations

import pytest

from galvatron.errors import StrategyError
from tests.marks import some_slow
from tests.parity.harness import BATCH_SIZE, check, job_of, planned, subject
from tests.parity.subjects import ignore_labels

MODELS = ["gpt", "llama", "gpt2", "bert"]
OTHER_TIES = ["llama-tied", "bert-untied"]
PLANS = [
    f"pp{pp}/m{4 if pp > 1 else 2}/{schedule}/dp{dp}-tp{tp}"
    for pp in (1, 2, 4)
    for tp in (1, 2)
    for dp in (1, 2)
    for schedule in (("gpipe", "1f1b") if pp > 1 else ("1f1b",))
    if pp * tp * dp <= 4
]
SOME = ["pp1/m2/1f1b/dp2-tp2", "pp2/m4/1f1b/dp1-tp2", "pp2/m4/gpipe/dp2-tp1", "pp4/m4/1f1b/dp1-tp1"]
ALONE = ["m2/dp4", "m2/tp4", "m2/tp4+sp", "m2/ulysses4", "m2/cp4"]
# The families whose roles are tried here only; the others are left to `make test-all`.
FAST = ["gpt2", "gemma"]
FAMILIES = [
    "gpt", "llama", "bert", "roberta", "deberta", "deberta-v2-float32", "t5", "vit-16", "qwen3", "mixtral", "mistral",
    "opt", "gpt-neox", "skips", "weighted", "shared", "encoder", "encoder-post-norm",
]  # fmt: skip
IGNORED = {
    "one sample": slice(3, 4),
    "first micro-batch": slice(0, BATCH_SIZE // 4),
    "last shard": slice(BATCH_SIZE // 2, BATCH_SIZE),
}


@pytest.mark.one_in(10)
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("model", MODELS)
def test_equals_eager(model: str, plan: str) -> None:
    check(model, plan)


@pytest.mark.one_in(6)
@pytest.mark.parametrize("plan", some_slow(SOME, PLANS))
@pytest.mark.parametrize("model", some_slow(OTHER_TIES, ["gpt-untied", "gpt2-untied"]))
def test_other_ties_equal_eager(model: str, plan: str) -> None:
    check(model, plan)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("ignored", IGNORED)
@pytest.mark.parametrize("plan", some_slow(["m4/dp2-tp2", "pp2/m4/gpipe/dp1-tp2"], ["m4/dp4", "pp4/m4/1f1b/dp1"]))
@pytest.mark.parametrize("model", some_slow(["gpt", "bert"], ["llama"]))
def test_samples_without_labels(model: str, plan: str, ignored: str) -> None:
    batch = ignore_labels(subject(model).batch(BATCH_SIZE, 2), IGNORED[ignored])
    check(model, plan, batch)


@pytest.mark.parametrize(
    "plan",
    some_slow(["m8/dp2-tp2", "pp2/m8/1f1b/dp2"], ["m16/dp1-tp4", "pp2/m2/gpipe/tp2-dp1", "pp4/m16/1f1b/dp1"]),
)
def test_numbers_of_micro_batches(plan: str) -> None:
    check("llama", plan)


@pytest.mark.one_in(6)
@pytest.mark.parametrize("plan", ALONE)
@pytest.mark.parametrize("model", some_slow(FAST, FAMILIES))
def test_role_alone_equals_eager(model: str, plan: str) -> None:
    check(model, plan)


@pytest.mark.one_in(6)
@pytest.mark.parametrize(
    "plan", some_slow(["m2/tp3+sp", "m2/cp3", "pp3/m4/1f1b/dp1"], ["m2/dp3", "m2/tp3", "m2/ulysses3"])
)
def test_degrees_that_are_no_powers_of_two(plan: str) -> None:
    check("llama-12-heads", plan, global_batch_size=12)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("plan", ["m2/dp2-tp2", "m2/tp4", "m2/tp4+sp", "m2/cp2-tp2", "m2/ulysses2-tp2"])
@pytest.mark.parametrize("model", some_slow(["llama-1-key-head"], ["llama", "llama-8-heads"]))
def test_more_ranks_than_key_heads(model: str, plan: str) -> None:
    check(model, plan)


def test_a_matrix_cut_by_two_factors_of_one_dimension() -> None:
    check("llama-uneven", "m2/tp6", global_batch_size=12)


@pytest.mark.parametrize("plan", ["m2/tp4+sp", "m2/ulysses4", "m2/cp4", "m2/dp2-tp2+sp", "m2/dp2-cp2"])
def test_sequence_that_does_not_divide_is_refused(plan: str) -> None:
    with pytest.raises(StrategyError, match="dimension of 17 does not divide"):
        job_of("vit", planned("vit", plan))


@pytest.mark.parametrize("model", some_slow(["llama"], ["gpt", "gpt2", "bert"]))
def test_a_batch_of_one_sample(model: str) -> None:
    """Captured with several samples, a program holds for a single one, for which a model leaves out what repeats
    positions for every sample."""
    check(model, "dp1", subject(model).batch(1, 1))
