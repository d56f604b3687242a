"""Three training steps under a plan and on one device: AdamW in two groups, clipping, weight decay, a scheduler."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from galvatron import runtime as rt
from tests.models import precise
from tests.parity.harness import BATCH_SIZE, TOLERANCES, Job, executor, subject
from tests.parity.subjects import Batch

CLIP = 0.1


def adamw(named_parameters: Iterable[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
    """Two groups by name and shape, as training scripts have them; one is empty on some ranks."""
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in named_parameters:
        groups["norm" in name or parameter.dim() < 2].append(parameter)
    decays = {"params": groups[False], "weight_decay": 0.1}
    return torch.optim.AdamW([decays, {"params": groups[True], "lr": 2e-2, "weight_decay": 0.0}], lr=1e-2)


def warm_up(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (step + 1) / 3)


def batches(model: str) -> list[Batch]:
    return [subject(model).batch(BATCH_SIZE, seed) for seed in range(3)]


def train(
    world: rt.World, job: Job, steps: list[Batch], optimizer: Any = adamw
) -> tuple[list[float], dict[str, Tensor]]:
    """On a rank: the losses and, on rank 0, the state after the steps."""
    program = executor(world, job, optimizer=optimizer, max_grad_norm=CLIP)
    assert program.optimizer is not None
    scheduler, losses = warm_up(program.optimizer), []
    for batch in steps:
        losses.append(float(program.train_step(batch)))
        scheduler.step()
    return losses, program.full_state_dict(rank0_only=True)


@cache
def trained_alone(model: str) -> tuple[list[float], dict[str, Tensor]]:
    """The same training in one process with plain PyTorch."""
    case = copy.deepcopy(subject(model))
    optimizer = adamw(case.model.named_parameters())
    scheduler, losses = warm_up(optimizer), []
    for batch in batches(model):
        optimizer.zero_grad()
        with precise(case.model):
            loss = case.loss(batch)
        loss.backward()
        assert torch.nn.utils.clip_grad_norm_(case.model.parameters(), CLIP) > CLIP, "nothing was clipped"
        optimizer.step()
        scheduler.step()
        losses.append(float(loss.detach()))
    return losses, case.model.state_dict()


def assert_same_training(model: str, plan: str, results: list[tuple[list[float], dict[str, Tensor]]]) -> None:
    """Asserts that what ranks returned from `train` is what one device computes."""
    losses, expected = trained_alone(model)
    for rank_losses, _ in results:
        for loss, wanted in zip(rank_losses, losses, strict=True):
            assert abs(loss - wanted) <= TOLERANCES[torch.float64] * abs(wanted), f"{plan}: {rank_losses} {losses}"
    state = results[0][1]
    assert list(state) == list(expected)
    for name, value in expected.items():
        assert state[name].dtype == value.dtype
        error = (state[name].double() - value.double()).norm() / value.double().norm().clamp_min(1e-12)
        assert error <= TOLERANCES[torch.float64], f"{plan}: {name} {error:.1e}"
