"""Models whose loss couples samples, with batches in which the order of the samples matters."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests import models


class Tower(nn.Module):
    """Tokens to one unit vector: embedding, residual blocks, the mean over the sequence."""

    def __init__(self, width: int = 16, depth: int = 2) -> None:
        super().__init__()
        self.embedding = nn.Embedding(models.VOCABULARY, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
            for _ in range(depth)
        )
        self.out = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = x + block(x)
        return F.normalize(self.out(x.mean(1)), dim=-1)


class Towers(nn.Module):
    """Two towers under a contrastive loss with a temperature that is learned (Radford et al. 2021)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Tower(), Tower()
        self.log_scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, tokens: Tensor, captions: Tensor) -> Tensor:
        logits = self.log_scale.exp() * self.first(tokens) @ self.second(captions).T
        own = torch.arange(logits.shape[0], device=logits.device)
        return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


class Views(nn.Module):
    """One tower that sees two views of each sample at once; a triangle of the products makes the order count."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = Tower()

    def forward(self, tokens: Tensor) -> Tensor:
        size = tokens.shape[0]
        z = self.tower(torch.cat([tokens, tokens.flip(1)]))
        a, b = z.unflatten(0, (2, size))
        spread = (1 - z.std(0)).relu().mean()
        return ((a @ b.T).triu().exp().sum() / size).log() + spread


class Balanced(nn.Module):
    """Blocks of soft experts, each with a balance loss beside the loss of the tokens, and a penalty on the router."""

    def __init__(self, width: int = 16, experts: int = 4, depth: int = 3) -> None:
        super().__init__()
        self.embedding = nn.Embedding(models.VOCABULARY, width)
        self.routers = nn.ModuleList(nn.Linear(width, experts) for _ in range(depth))
        self.experts = nn.ModuleList(nn.Linear(width, experts * width) for _ in range(depth))
        self.head = nn.Linear(width, models.VOCABULARY)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        x, balance = self.embedding(tokens), torch.zeros((), dtype=self.head.weight.dtype)
        for router, experts in zip(self.routers, self.experts, strict=True):
            shares = router(x).softmax(-1)
            outputs = experts(x).unflatten(-1, (shares.shape[-1], -1))
            x = x + torch.tanh(shares.unsqueeze(-2) @ outputs).squeeze(-2)
            chosen = (shares == shares.amax(-1, keepdim=True)).to(shares.dtype).mean((0, 1))
            balance = balance + shares.shape[-1] * (chosen * shares.mean((0, 1))).sum()
        loss = F.cross_entropy(self.head(x).flatten(0, 1), targets.flatten())
        return loss + 0.1 * balance + 1e-2 * sum(p.pow(2).sum() for p in self.routers[0].parameters())


class Penalised(nn.Module):
    """Residual blocks with terms of the loss that have no samples in them: penalties, a number, a count of tokens."""

    def __init__(self, width: int = 16, depth: int = 3) -> None:
        super().__init__()
        self.embedding = nn.Embedding(models.VOCABULARY, width)
        self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width)) for _ in range(depth))
        self.head = nn.Linear(width, models.VOCABULARY)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = x + torch.tanh(block(x))
        loss = F.cross_entropy(self.head(x).flatten(0, 1), targets.flatten())
        matrices = [p for p in self.blocks.parameters() if p.dim() == 2]
        penalty = torch.stack([p.pow(2).sum() for p in matrices]).sum() + self.head.bias.exp().mean()
        return 1 - (loss - 0.1 * penalty) + 1e-3 * (targets != -100).sum()


def alone(size: int, seed: int) -> dict[str, Tensor]:
    """Tokens, a row of them per sample."""
    return {"tokens": pairs(size, seed)["tokens"]}


def pairs(size: int, seed: int) -> dict[str, Tensor]:
    """Tokens and captions, a row of each per sample."""
    generator = torch.Generator().manual_seed(seed)
    shape = (size, models.SEQUENCE)
    return {n: torch.randint(0, models.VOCABULARY, shape, generator=generator) for n in ("tokens", "captions")}


def labelled(size: int, seed: int) -> dict[str, Tensor]:
    """Tokens and targets, of which rows ignore different numbers."""
    return models.ragged_tokens(size, seed, "tokens", "targets")
