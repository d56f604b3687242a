"""A small language model and data sets with unequally many labels, for tests of loaders."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import IterableDataset, default_collate

import galvatron

WORDS, WIDTH, LENGTH = 24, 16, 8


class Words(nn.Module):
    """Attention between layers; the loss is a mean over the labels that count, and what the weights are fined for.

    The number of labels is `clamped`, so that it is no sum over parts of the batch; or the loss `couples` samples; or
    some of what attention gives `drops` out.
    """

    def __init__(self, kind: str = "") -> None:
        super().__init__()
        self.kind = kind
        self.embedding = nn.Embedding(WORDS, WIDTH)
        self.inner = nn.ModuleList(nn.Linear(WIDTH, 3 * WIDTH) for _ in range(2))
        self.head = nn.Linear(WIDTH, WORDS, bias=False)

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        x = self.embedding(ids)
        for layer in self.inner:
            q, k, v = (t.unflatten(2, (4, -1)).transpose(1, 2) for t in layer(x).chunk(3, 2))
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
            x = x + (F.dropout(mixed, 0.1, self.training) if self.kind == "drops" else mixed)
        logits = self.head(x).flatten(0, 1)
        if self.kind == "clamped":
            loss = F.cross_entropy(logits, labels.flatten(), reduction="sum") / (labels != -100).sum().clamp(min=20)
        else:
            loss = F.cross_entropy(logits, labels.flatten())
        if self.kind == "couples":
            loss = loss + x.mean().square()
        return loss + 0.01 * self.head.weight.square().sum()


class Ragged:
    """Samples that know their number: the first token is its last digit; later ones have fewer labels. What is drawn
    is repeatable."""

    def __init__(self, count: int, *, draws: bool = False) -> None:
        self.count, self.draws = count, draws

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(number)
        ids = torch.randint(WORDS, (LENGTH,), generator=None if self.draws else generator)
        ids[:3] = torch.tensor([number // 100, number // 10 % 10, number % 10])
        labels = torch.randint(WORDS, (LENGTH,), generator=generator)
        labels[LENGTH - number % LENGTH :] = -100
        return {"ids": ids, "labels": labels}


class Streamed(IterableDataset[dict[str, Tensor]]):
    """The same samples, one after another; `keeps` its place. Shares have every so many of them."""

    def __init__(self, count: int, keeps: bool = False, first: int = 0, step: int = 1) -> None:
        self.samples, self.keeps = Ragged(count), keeps
        self.at, self.first, self.step = first, first, step
        self.shared: list[int] = []
        if keeps:
            self.state_dict, self.load_state_dict = self._state, self._load

    def _state(self) -> dict[str, Any]:
        return {"at": self.at}

    def _load(self, state: dict[str, Any]) -> None:
        self.at = state["at"]

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        while self.at < len(self.samples):
            self.at += self.step
            yield self.samples[self.at - self.step]
        self.at = self.first

    def shard(self, num_shards: int, index: int) -> Streamed:
        self.shared.append(index)
        return Streamed(len(self.samples), self.keeps, index, num_shards)


def numbers(batch: Any) -> list[int]:
    """Which samples of `Ragged` a batch has."""
    return [100 * int(row[0]) + 10 * int(row[1]) + int(row[2]) for row in batch["ids"]]


def whole(dataset: Any, chosen: list[int]) -> dict[str, Tensor]:
    """A global batch."""
    return default_collate([dataset[number] for number in chosen])


def new_model(kind: str = "") -> Words:
    torch.manual_seed(0)
    return Words(kind).double()


sgd = partial(torch.optim.SGD, lr=0.1)


def compiled(plan: str, kind: str = "", **options: Any) -> galvatron.CompiledModel:
    """The model under a plan."""
    batch = whole(Ragged(8), list(range(8)))
    return galvatron.compile(new_model(kind), batch, plan=plan, **{"optimizer": sgd, "max_grad_norm": 0.5} | options)
