"""Models that do something else in evaluation mode than in training."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.parity.states import WIDTH, Block, Blocks

DEPTH = 3
WAYS = ("scaled", "gated", "normed", "noted", "stopped", "smoothed", "deep")


class Scaled(Block):
    """Twice the width in training, and another function."""

    def between(self, h: Tensor) -> Tensor:
        return 2 * h.relu() if self.training else h


class Gated(Block):
    """A matrix that only evaluation reads, and one that only training does."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.extra = nn.Linear(2 * WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, 2 * WIDTH)

    def between(self, h: Tensor) -> Tensor:
        return h + self.extra(h).sin() if self.training else h * self.gate(h).sigmoid()


class Normed(Block):
    """Batch norms, one of which takes the statistics of its batch in either mode."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(2 * WIDTH)

    def between(self, h: Tensor) -> Tensor:
        rows = self.norm(h.flatten(0, 1))
        return (rows + rows.square() if self.training else rows).view_as(h)


class Noted(Block):
    """Writes in training what it reads in evaluation."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(2 * WIDTH))

    def between(self, h: Tensor) -> Tensor:
        if not self.training:
            return h - self.mean
        with torch.no_grad():
            self.mean += h.sum((0, 1))
        return h


class Stopped(Block):
    """Without a gradient of what is before, and with other checks of its values in either mode."""

    def between(self, h: Tensor) -> Tensor:
        if not self.training:
            assert not h.isnan().any()
            return h
        if (h > 1e6).any():
            raise ValueError("too much")
        return 2 * h.detach()


class Smoothed(nn.Module):
    """A loss with a penalty and smoothed labels in training; what it returns besides is alike."""

    def __init__(self, block: type[Block] = Block) -> None:
        super().__init__()
        self.blocks, self.head = nn.ModuleList(block() for _ in range(DEPTH)), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        aside = x.new_zeros(())
        for block in self.blocks:
            x = block(x)
            if self.training:
                aside = aside + x.square().mean()
        logits = self.head(x.mean(1))
        loss = F.cross_entropy(logits, y, label_smoothing=0.2 if self.training else 0.0)
        return {"loss": loss + 0.1 * aside, "logits": logits}


def model_of(name: str) -> nn.Module:
    """A model by its name in `WAYS`."""
    if name in ("smoothed", "deep"):
        return Smoothed(Scaled if name == "deep" else Block)
    return Blocks({"scaled": Scaled, "gated": Gated, "normed": Normed, "noted": Noted, "stopped": Stopped}[name], DEPTH)


def loss_of(output: Any, batch: Any) -> Tensor:
    """The loss, which models return in two ways."""
    return output if isinstance(output, Tensor) else output["loss"]
