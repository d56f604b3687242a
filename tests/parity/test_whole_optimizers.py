"""Optimizers whose rule reads whole parameters: trained as on one device, saved and resharded, under any plan."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from galvatron import JoinedOptimizer, WholeParameters, checkpoints
from galvatron import runtime as rt
from galvatron.ir.planned import PlanShorthand
from tests.marks import some_slow
from tests.models import precise
from tests.parity.harness import BATCH_SIZE, Job, executor, job_of, planned, subject
from tests.parity.subjects import Batch
from tests.ranks import run_ranks

MODEL = "llama-tied"
"""Without biases of attention keys: their gradient is rounding, which Adafactor makes as large as any other."""
PLANS = ["m2/dp2-zero3", "m2/tp2", "m2/dp2", "m2/dp4-zero1", "m2/dp2-tp2-zero2", "pp2/m4/1f1b/dp2-zero3", "m2/tp2+sp",
         "pp2/m4/zbv/tp2", "m2/cp2-dp2-zero3", "m1/dp1"]  # fmt: skip
BEFORE, AFTER = 2, 2


def is_matrix(name: str, shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 and "embed" not in name and "head" not in name


def muon(named_parameters: Any) -> torch.optim.Optimizer:
    """Matrices by Muon, and all else, in parts, by AdamW."""
    named = list(named_parameters)
    matrices = [p for name, p in named if is_matrix(name, p.shape) and p.dim() == 2 and p.numel()]
    chosen = {id(p) for p in matrices}
    others = [p for _, p in named if id(p) not in chosen]
    rules: list[torch.optim.Optimizer] = [torch.optim.Muon(matrices, lr=1e-2, weight_decay=0.1)] if matrices else []
    return JoinedOptimizer(*rules, *([torch.optim.AdamW(others, lr=1e-2)] if others else []))


def adafactor(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adafactor(parameters, lr=1e-2, weight_decay=0.1)


RULES: dict[str, Callable[[], Any]] = {
    "muon": lambda: WholeParameters(muon, is_matrix),
    "adafactor": lambda: WholeParameters(adafactor),
}


def batches() -> list[Batch]:
    return [subject(MODEL).batch(BATCH_SIZE, seed) for seed in range(BEFORE + AFTER)]


def alone(rule: str) -> tuple[list[float], dict[str, Tensor]]:
    """Training in one process with plain PyTorch."""
    case = copy.deepcopy(subject(MODEL))
    named = list(case.model.named_parameters())
    optimizer = muon(named) if rule == "muon" else adafactor([p for _, p in named])
    losses = []
    for batch in batches():
        optimizer.zero_grad()
        with precise(case.model):
            loss = case.loss(batch)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses, case.model.state_dict()


Run = tuple[list[float], dict[str, Tensor]]


def train(world: rt.World, job: Job, rule: str, steps: list[Batch], folder: str) -> Run:
    """On a rank: some steps, a checkpoint, and the others."""
    program = executor(world, job, optimizer=RULES[rule]())
    losses = [float(program.train_step(batch)) for batch in steps[:BEFORE]]
    checkpoints.Saver(world, program).save(Path(folder), step=BEFORE, keep=1, extra={})
    losses += [float(program.train_step(batch)) for batch in steps[BEFORE:]]
    return losses, program.full_state_dict(rank0_only=True)


def go_on(world: rt.World, job: Job, rule: str, steps: list[Batch], folder: str) -> Run:
    """On a rank: from that checkpoint."""
    program = executor(world, job, optimizer=RULES[rule]())
    checkpoints.load(world, program, Path(folder))
    return [float(program.train_step(batch)) for batch in steps[BEFORE:]], program.full_state_dict(rank0_only=True)


def assert_same(found: Run, wanted: Run) -> None:
    for loss, other in zip(found[0], wanted[0][-len(found[0]) :], strict=True):
        assert abs(loss - other) <= 1e-9 * abs(other)
    for name, value in wanted[1].items():
        error = float((found[1][name] - value).norm() / value.norm().clamp_min(1e-12))
        assert error <= 1e-9, f"{name} is off by {error:.1e}"


@pytest.mark.parametrize(
    ("rule", "plan"), some_slow([("muon", PLANS[0])], [(rule, plan) for rule in RULES for plan in PLANS])
)
def test_trains_as_one_device_and_goes_on_under_another_plan(rule: str, plan: str, tmp_path: Path) -> None:
    wanted = alone(rule)
    size = PlanShorthand.parse(plan).world_size
    arguments = rule, batches(), str(tmp_path)
    assert_same(run_ranks(train, size, job_of(MODEL, planned(MODEL, plan, size)), *arguments, timeout=200)[0], wanted)
    other = PLANS[(PLANS.index(plan) + 1) % len(PLANS)]
    size = PlanShorthand.parse(other).world_size
    assert_same(run_ranks(go_on, size, job_of(MODEL, planned(MODEL, other, size)), *arguments, timeout=200)[0], wanted)
