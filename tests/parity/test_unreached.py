"""Experts in a list that no token of a step has chosen: no gradient, as in eager, so that an optimizer skips them."""

from __future__ import annotations

import pytest
from torch import Tensor

from galvatron import runtime as rt
from galvatron.ir.planned import PlanShorthand
from tests.marks import some_slow
from tests.parity.harness import Job, job_of, planned, subject
from tests.parity.subjects import Batch
from tests.parity.training import adamw, assert_same_training, batches, train, trained_alone
from tests.ranks import run_ranks

NAME = "turns: listed"
PLANS = [
    "m2/ep2", "pp2/m2/1f1b/ep2", "m1/dp1", "m4/dp2-zero3", "m2/dp2-zero1", "m2/dp2-zero2", "m2/tp2", "pp2/m4/zbv/dp1",
    "m2/ep2-recompute", "m2/dp2-ep2-zero1",
]  # fmt: skip

pytestmark = pytest.mark.filterwarnings("ignore:.*is taken with all rows")


def train_whole(world: rt.World, job: Job, steps: list[Batch]) -> tuple[list[float], dict[str, Tensor]]:
    """As `train`, where owners update parameters whole."""
    return train(world, job, steps, rt.WholeParameters(adamw))


@pytest.mark.slow
@pytest.mark.parametrize("plan", ["m2/dp2-zero1", "m1/dp2-zero3", "pp2/m2/1f1b/tp2"])
def test_an_owner_skips_it_too(plan: str) -> None:
    world_size = PlanShorthand.parse(plan).world_size
    job = job_of(NAME, planned(NAME, plan, world_size))
    assert_same_training(NAME, plan, run_ranks(train_whole, world_size, job, batches(NAME)))


@pytest.mark.parametrize("plan", some_slow(PLANS[:1], PLANS[1:]))
def test_an_optimizer_leaves_alone_what_it_leaves_alone_on_one_device(plan: str) -> None:
    """Weight decay moves what has a gradient of zeros, and nothing moves what has none."""
    world_size = PlanShorthand.parse(plan).world_size
    job = job_of(NAME, planned(NAME, plan, world_size))
    before = {name: value.detach().clone() for name, value in subject(NAME).model.state_dict().items()}
    _, expected = trained_alone(NAME)
    assert [name for name in before if before[name].equal(expected[name])] == [
        f"layers.{layer}.experts.{expert}.{what}"
        for layer, unchosen in ((0, (2, 3)), (1, (3,)))
        for expert in unchosen
        for what in ("weight", "bias")
    ]
    assert_same_training(NAME, plan, run_ranks(train, world_size, job, batches(NAME)))
