"""Looking for numbers that are not finite changes no number: under ZeRO, recomputation, pipelines and tensor
parallelism, steps are the same bit by bit."""

from __future__ import annotations

import pytest
import torch

import galvatron
from galvatron import runtime as rt
from tests.marks import some_slow
from tests.ranks import run_ranks
from tests.test_api import adamw, new_batch, new_model


def steps_are_equal(world: rt.World, plan: str) -> bool:
    trained = []
    for detect in (False, True):
        compiled = galvatron.compile(
            new_model(), new_batch(samples=8), plan=plan, optimizer=adamw, detect_nonfinite=detect
        )
        losses = [compiled.train_step(new_batch(samples=8, seed=seed)) for seed in range(2)]
        trained.append([*losses, *compiled.full_state_dict().values()])
    return all(torch.equal(a, b) for a, b in zip(*trained, strict=True))


@pytest.mark.parametrize(
    "plan",
    some_slow(
        ["pp1/m2/1f1b/dp2-zero3-recompute"],
        ["pp1/m2/1f1b/dp2-zero2-recompute=selective", "pp2/m2/1f1b/dp1-recompute", "pp1/m2/gpipe/tp2"],
    ),
)
def test_watching_changes_nothing(plan):
    assert all(run_ranks(steps_are_equal, 2, plan))
