"""A model that checks its own values, in a file whose assertions pytest leaves as they are."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, LENGTH, VOCABULARY = 8, 4, 13
Batch = dict[str, Tensor]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.norm = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        h = self.down(torch.relu(self.up(self.norm(x))))
        if h.isnan().any() or not torch.isfinite(h).all():
            raise FloatingPointError(f"a block of width {WIDTH}")
        return x + h


class Checked(nn.Module):
    """A tied vocabulary that 2 does not divide; checks of inputs, of a parameter, of sums and of slices."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.scale = nn.Embedding(VOCABULARY, WIDTH), nn.Parameter(torch.ones(WIDTH))
        self.blocks = nn.ModuleList(Block() for _ in range(2))

    def forward(self, tokens: Tensor, labels: Tensor, keep: Tensor) -> Tensor:
        if tokens.max() >= VOCABULARY or tokens.min() < 0:
            raise IndexError("no such token")
        assert keep.any(-1).all(), "a sample without tokens"
        if (self.scale < 0).any():
            raise ValueError("a negative scale")
        h = self.table(tokens) * keep.unsqueeze(-1)
        for block in self.blocks:
            h = block(h)
        logits = F.linear(h * self.scale, self.table.weight)
        if logits.abs().max() > 1e3:  # left out: it passes where some are no numbers
            raise FloatingPointError("large logits")
        assert not (logits > 1e3).any(), "large logits"
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten())


def model() -> Checked:
    """Equal weights in every process."""
    torch.manual_seed(0)
    return Checked().double()


def batch(size: int, seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    tokens, labels = torch.randint(0, VOCABULARY, (2, size, LENGTH), generator=generator)
    labels[::3, 1:] = -100
    keep = torch.rand(size, LENGTH, generator=generator) > 0.3
    keep[:, 0] = True
    return {"tokens": tokens, "labels": labels, "keep": keep}


def without_tokens(size: int, seed: int) -> Batch:
    """A batch of which one sample fails a check."""
    found = batch(size, seed)
    found["keep"][size - 3] = False
    return found
