"""Every way in which a plan runs: ZeRO × recomputation × schedule × what else shards, for three optimizer steps."""

from __future__ import annotations

from itertools import product

import pytest

from tests.parity.harness import job_of, layer_count, planned
from tests.parity.training import assert_same_training, batches, train
from tests.ranks import run_ranks

MODEL = "llama"
ZERO = ["", "-zero1", "-zero2", "-zero3"]
RECOMPUTE = ["", "-recompute", "-recompute=selective"]
SCHEDULES = ["gpipe", "1f1b", "interleaved2", "zbv"]
PIPELINED = ["dp2", "tp2", "tp2+sp", "ulysses2"]
ALONE = ["dp4", "dp2-tp2", "dp2-tp2+sp", "dp2-ulysses2", "dp2-cp2"]


def equals_one_device(plan: str) -> None:
    job = job_of(MODEL, planned(MODEL, plan))
    assert_same_training(MODEL, plan, run_ranks(train, 4, job, batches(MODEL)))


@pytest.mark.one_in(6)
@pytest.mark.parametrize(
    ("index", "schedule", "role"), [(i, *pair) for i, pair in enumerate(product(SCHEDULES, PIPELINED))]
)
def test_every_schedule_and_role(index: int, schedule: str, role: str) -> None:
    """Each pair under one ZeRO level and one recomputation, in rotation."""
    zero, recompute = ZERO[(index + index // 4) % 4], RECOMPUTE[index % 3]
    equals_one_device(f"pp2/m4/{schedule}/{role}{zero}{recompute}")


@pytest.mark.slow
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("role", PIPELINED)
def test_every_combination(schedule: str, role: str) -> None:
    for zero, recompute in product(ZERO, RECOMPUTE):
        equals_one_device(f"pp2/m4/{schedule}/{role}{zero}{recompute}")


@pytest.mark.slow
@pytest.mark.parametrize("role", ALONE)
def test_every_combination_on_one_stage(role: str) -> None:
    for zero, recompute in product(ZERO, RECOMPUTE):
        equals_one_device(f"m2/{role}{zero}{recompute}")


@pytest.mark.one_in(2)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_layers_that_differ_in_everything(schedule: str) -> None:
    strategies = [
        "dp2-zero3", "tp2-recompute", "ulysses2-zero2-recompute=selective", "dp2-zero1-recompute",
        "tp2+sp-zero3", "dp2",
    ]  # fmt: skip
    stages = 4 if schedule in ("interleaved2", "zbv") else 2
    layers = layer_count(MODEL)
    names = [strategies[i % len(strategies)] for i in range(layers)]
    cuts = [layers * s // stages for s in range(stages + 1)]
    plan = [names[a:b] for a, b in zip(cuts, cuts[1:], strict=False)]
    job = job_of(MODEL, planned(MODEL, plan, schedule=schedule))
    assert_same_training(MODEL, str(plan), run_ranks(train, 4, job, batches(MODEL)))
