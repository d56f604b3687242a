"""Small models whose sharded programs have what silent bugs are made in."""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import galvatron
from galvatron.ir.planned import PlanShorthand, resolve
from galvatron.ir.program import Program
from galvatron.passes import LOWERING
from galvatron.passes.pipeline import Pipeline
from tests.parity import harness

WIDTH, HEADS, LENGTH, WORDS = 8, 4, 8, 33


class Block(nn.Module):
    """Norms, attention with one matrix for queries, keys and values, and a feed-forward part, with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.drop = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        samples, length, width = x.shape
        qkv = self.qkv(self.norm_1(x)).view(samples, length, 3, HEADS, width // HEADS)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind()
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.drop(self.out(mixed.transpose(1, 2).reshape(samples, length, width)))
        return x + self.down(F.gelu(self.up(self.norm_2(x))))


class Words(nn.Module):
    """A language model with tied words, an odd number of them, positions, and a penalty on its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(2))

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        x = self.words(ids) + self.places(torch.arange(ids.shape[1]))
        for block in self.blocks:
            x = block(x)
        loss = F.cross_entropy(F.linear(x, self.words.weight).flatten(0, 1), labels.flatten())
        return loss + 0.1 * self.places.weight.square().sum()


class Pictures(nn.Module):
    """Statistics of the batch in the middle, and running ones."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(WIDTH, 16), nn.BatchNorm1d(16), nn.Linear(16, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.norm(self.first(x)))).square().mean()


class Pairs(nn.Module):
    """A contrastive loss: every sample is compared with all others."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        scores = self.first(x) @ self.second(y).T
        return F.cross_entropy(scores, torch.arange(len(x)))


class Marks(nn.Module):
    """Rows of which one has no gradient, words that do not count, a largest number, a least norm, and a step that is
    counted."""

    count: Tensor
    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.last = nn.Embedding(5000, WIDTH, padding_idx=7), nn.Linear(WIDTH, WIDTH)
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(WIDTH))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.rows(ids)
        x = x.clamp(max=1e4)
        x = x / x.square().mean(-1, keepdim=True).clamp(min=1e-4)
        self.count += 1
        self.mean.copy_(x.mean((0, 1)))
        return (self.last(x) * (ids != 4000).unsqueeze(-1)).square().mean()


class Roots(nn.Module):
    """Numbers that must not be negative."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return (self.last(F.relu(self.first(torch.sqrt(x)))) * 2.0).square().mean()


BATCH_SIZE = 16


@cache
def _costed(name: str) -> Program:
    torch.manual_seed(0)
    ids, x = torch.zeros(BATCH_SIZE, LENGTH, dtype=torch.int64), torch.zeros(BATCH_SIZE, WIDTH)
    models = {
        "words": (Words, {"ids": ids, "labels": ids}),
        "pictures": (Pictures, {"x": x}),
        "pairs": (Pairs, {"x": x, "y": x}),
        "marks": (Marks, {"ids": ids}),
        "roots": (Roots, {"x": x}),
    }
    model, batch = models[name]
    return Pipeline.of(("annotate-costs",)).run(galvatron.capture(model(), batch))


@cache
def planned(name: str, plan: str) -> Program:
    """A model under a plan."""
    program = _costed(name)
    return harness.with_plan(program, resolve(program, plan, BATCH_SIZE, PlanShorthand.parse(plan).world_size))


@cache
def staged(name: str, plan: str) -> Program:
    """The program that code is generated from, of a model under a plan."""
    return Pipeline.of(LOWERING).run(planned(name, plan))
