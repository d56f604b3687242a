"""Types of 16 bits, and optimizers and schedulers of one's own, under `GalvatronTrainer`."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from galvatron import runtime as rt
from galvatron.trainer import last_checkpoint
from tests.ranks import run_ranks
from tests.trainer.small import plain_trainer, trained, trainer

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("shared_captures")]


def in_16_bits(world: rt.World, folder: Path, plan: str, kind: str, stop: int | None, resumed: bool) -> Any:
    args = {kind: True, "save_strategy": "steps", "save_steps": 1, "eval_strategy": "no"}
    made = trainer(folder, plan, world.size, stop, args=args)
    made.model.float()
    found = trained(made, last_checkpoint(folder) if resumed else None)
    return found, made.compiled.loss_scale


@pytest.mark.parametrize("kind", ["bf16", "fp16"])
def test_trains_in_16_bits_and_goes_on_bit_for_bit(tmp_path: Path, kind: str) -> None:
    def on_ranks(folder: Path, stop: int | None, resumed: bool) -> Any:
        return run_ranks(in_16_bits, 2, folder, "dp2-zero2", kind, stop, resumed, timeout=240)[0]

    (logs, values), scale = on_ranks(tmp_path / "whole", None, False)
    before, _ = on_ranks(tmp_path / "run", 3, False)
    (after, own), _ = on_ranks(tmp_path / "run", None, True)
    steps = [log for log in logs if "loss" in log]
    assert [log for log in [*before[0][:3], *after] if "loss" in log] == steps
    assert all(torch.equal(own[name], value) for name, value in values.items())
    wanted, _ = trained(plain_trainer(tmp_path / "plain", args={"eval_strategy": "no"}))
    of_plain = [log for log in wanted if "loss" in log]
    assert steps[0]["loss"] == pytest.approx(of_plain[0]["loss"], rel=0.01)
    if all(math.isfinite(log["grad_norm"]) for log in steps):  # a step that overflows updates nothing
        assert steps == [pytest.approx(log, rel=0.1) for log in of_plain]
    else:
        assert kind == "fp16"
    assert (scale is None) == (kind == "bf16")


def overflowing(world: rt.World, folder: Path) -> Any:
    made = trainer(folder, "dp2", world.size, args={"fp16": True, "eval_strategy": "no"})
    made.model.float()
    with torch.no_grad():
        made.model.lm_head.weight.mul_(64)  # gradients of so large a loss scale overflow
    return trained(made)[0]


def test_a_step_that_overflows_does_not_count_for_the_schedule(tmp_path: Path) -> None:
    for logs in run_ranks(overflowing, 2, tmp_path, timeout=240):
        rates = [log["learning_rate"] for log in logs if "learning_rate" in log]
        skipped = [not math.isfinite(log["grad_norm"]) for log in logs if "grad_norm" in log]
        assert any(skipped), "nothing overflowed"
        for number, leaves in enumerate(skipped[:-1]):
            assert (rates[number + 1] == rates[number]) == leaves


def decayed(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.8)


def with_functions(world: rt.World, folder: Path, plan: str) -> Any:
    functions = partial(torch.optim.SGD, lr=0.1, nesterov=True, momentum=0.9), decayed
    return trained(trainer(folder, plan, world.size, optimizers=functions))


def test_an_optimizer_and_a_scheduler_of_ones_own(tmp_path: Path) -> None:
    plain = plain_trainer(tmp_path / "plain")
    assert plain.model is not None
    plain.optimizer = torch.optim.SGD(plain.model.parameters(), lr=0.1, nesterov=True, momentum=0.9)
    plain.lr_scheduler = decayed(plain.optimizer)
    wanted, values = trained(plain)
    for logs, own in run_ranks(with_functions, 4, tmp_path / "own", "dp2-tp2-zero1", timeout=240):
        for log, other in zip(logs, wanted, strict=True):
            assert log == pytest.approx(other, rel=1e-6)
        for name, value in values.items():
            torch.testing.assert_close(own[name], value, rtol=1e-6, atol=1e-7)
