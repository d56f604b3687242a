"""Three steps of an optimizer where ranks have some of the experts each: losses and weights, router included, are those
of one device; and batches that leave some experts without rows."""

from __future__ import annotations

import pytest
import torch

from galvatron.ir.planned import PlanShorthand
from tests import models
from tests.marks import some_slow
from tests.parity.harness import BATCH_SIZE, check, eager, job_of, planned, subject
from tests.parity.subjects import Batch
from tests.parity.training import assert_same_training, batches, train
from tests.ranks import run_ranks

MODELS = [*(f"{family}-batched_mm" for family in ("mixtral", *models.EXPERTS)), "turns: plain", "routed: loop"]
PLANS = [
    "m1/ep4", "m2/dp2-ep2", "m1/ep2-tp2", "m1/ep2-tp2+sp", "m1/ep2-ulysses2", "m1/ep2-cp2", "m2/ep4-zero1",
    "m2/dp2-ep2-zero2", "m2/ep2-tp2-zero3", "pp2/m4/1f1b/ep2", "pp2/m4/zbv/ep2", "m2/ep4-recompute",
    "m2/dp2-ep2-recompute=selective",
]  # fmt: skip
EIGHT = ["m1/dp2-ep2-tp2", "m2/ep4-dp2-zero3", "pp2/m2/1f1b/ep2-tp2+sp-zero1", "pp2/m4/zbv/ep2-dp2-recompute"]


@pytest.mark.parametrize(
    ("model", "plan"),
    some_slow([("routed: loop", "m2/dp2-ep2-zero2")], [(model, plan) for model in MODELS for plan in (*PLANS, *EIGHT)]),
)
def test_three_steps_equal_one_device(model: str, plan: str) -> None:
    ranks = PlanShorthand.parse(plan).world_size
    job = job_of(model, planned(model, plan, ranks))
    assert_same_training(model, plan, run_ranks(train, ranks, job, batches(model), timeout=240))


def alike(model: str) -> Batch:
    """One token everywhere, so that all rows choose the same experts; labels differ, and are ragged."""
    batch = subject(model).batch(BATCH_SIZE, 1)
    return batch | {"input_ids": torch.full_like(batch["input_ids"], 7)}


@pytest.mark.slow
@pytest.mark.parametrize("plan", ["m1/ep4", "m2/dp2-ep2", "m1/ep2-tp2", "pp2/m4/1f1b/ep2-recompute"])
@pytest.mark.parametrize("family", ["mixtral", "qwen3-moe", "olmoe", "deepseek-v3"])
def test_some_experts_have_all_rows_and_others_none(family: str, plan: str) -> None:
    model = f"{family}-batched_mm"
    batch = alike(model)
    tables = [g for name, g in eager(model, batch).gradients.items() if name.endswith("experts.down_proj")]
    assert [[bool(expert.any()) for expert in table].count(True) for table in tables] == [2] * len(tables)
    check(model, plan, batch)


@pytest.mark.slow
@pytest.mark.parametrize("plan", ["m1/ep4", "pp2/m4/1f1b/ep2"])
def test_samples_without_labels(plan: str) -> None:
    """Those of one rank, and of one micro-batch, have no term in the loss."""
    model = "mixtral-batched_mm"
    batch = subject(model).batch(BATCH_SIZE, 1)
    labels = batch["labels"].clone()
    labels[: BATCH_SIZE // 4] = -100
    check(model, plan, batch | {"labels": labels})
