"""The loss scaler: when it halves, when it doubles, and what it does to a backward."""

from __future__ import annotations

import math

import pytest
import torch

from galvatron import runtime as rt
from galvatron.errors import GalvatronError

GOOD, BAD = torch.tensor(1.0, dtype=torch.float64), torch.tensor(math.inf, dtype=torch.float64)


def test_it_halves_after_an_overflow_and_doubles_after_good_steps() -> None:
    scaler = rt.LossScaler(scale=8.0, growth_steps=3)
    scales = []
    for norm in (GOOD, GOOD, BAD, BAD.neg(), GOOD, torch.tensor(math.nan), GOOD, GOOD, GOOD, GOOD):
        assert scaler.accepts(norm) == bool(norm.isfinite())
        scales.append(scaler.scale)
    assert scales == [8, 8, 4, 2, 2, 1, 1, 1, 2, 2]


def test_the_backward_starts_from_the_scale_and_the_loss_stays() -> None:
    scaler = rt.LossScaler(scale=32.0)
    weight = torch.tensor(3.0, requires_grad=True)
    for _ in range(2):
        loss = weight * 2
        scaler.start(loss)
        assert loss.item() == 6.0
        loss.backward()
        scaler.scale /= 2
    assert weight.grad is not None and float(weight.grad) == 2 * 32 + 2 * 16
    scaler.start(torch.tensor(1.0))  # a loss without a gradient


def test_a_model_that_overflows_at_any_scale_is_refused() -> None:
    scaler = rt.LossScaler(scale=1.0)
    with pytest.raises(GalvatronError, match="overflow even at a loss scale of"):
        for _ in range(100):
            scaler.accepts(BAD)
