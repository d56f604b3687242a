"""One strategy for all layers: loss and every gradient of the whole batch, in float64."""

from __future__ import annotations

import pytest

from tests.parity.harness import BATCH_SIZE, check, subject
from tests.parity.subjects import ignore_labels

MODELS = ["gpt", "gpt-untied", "llama", "llama-tied", "gpt2", "gpt2-untied", "bert", "bert-untied"]
PLANS = [
    f"pp{pp}/m{4 if pp > 1 else 2}/{schedule}/dp{dp}-tp{tp}"
    for pp in (1, 2, 4)
    for tp in (1, 2)
    for dp in (1, 2)
    for schedule in (("gpipe", "1f1b") if pp > 1 else ("1f1b",))
    if pp * tp * dp <= 4
]
IGNORED = {
    "one sample": slice(3, 4),
    "first micro-batch": slice(0, BATCH_SIZE // 4),
    "last shard": slice(BATCH_SIZE // 2, BATCH_SIZE),
}


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("model", MODELS)
def test_equals_eager(model: str, plan: str) -> None:
    check(model, plan)


@pytest.mark.parametrize("ignored", IGNORED)
@pytest.mark.parametrize("plan", ["m4/dp4", "m4/dp2-tp2", "pp2/m4/gpipe/dp1-tp2", "pp4/m4/1f1b/dp1"])
@pytest.mark.parametrize("model", ["gpt", "llama", "bert"])
def test_samples_without_labels(model: str, plan: str, ignored: str) -> None:
    batch = ignore_labels(subject(model).batch(BATCH_SIZE, 2), IGNORED[ignored])
    check(model, plan, batch)


@pytest.mark.parametrize(
    "plan", ["m8/dp2-tp2", "m16/dp1-tp4", "pp2/m8/1f1b/dp2", "pp2/m2/gpipe/tp2-dp1", "pp4/m16/1f1b/dp1"]
)
def test_numbers_of_micro_batches(plan: str) -> None:
    check("llama", plan)
