"""Models whose batches are padded to their own longest sample, and batches of several lengths."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from galvatron.ir.capture import Captured, Dynamic
from tests import models

WIDTH, HEADS = 16, 4

LENGTHS_TRIED = (12, 7, 16, 20)
"""Of the example, and of other batches; all but the second are multiples of four."""


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        batch, length, width = x.shape
        heads = self.qkv(self.norm(x)).view(batch, length, 3, HEADS, width // HEADS)
        query, key, value = heads.permute(2, 0, 3, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(F.gelu(self.up(x)))


class Padded(nn.Module):
    """A language model by hand: learned positions, a causal mask from positions and from padding, labels shifted in the
    loss, and a term by the length."""

    positions: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(models.VOCABULARY, WIDTH), nn.Parameter(torch.randn(1, 24, WIDTH))
        self.blocks, self.head = nn.ModuleList(Block() for _ in range(3)), nn.Linear(WIDTH, models.VOCABULARY)

    def forward(self, input_ids: Tensor, labels: Tensor, attention_mask: Tensor) -> Tensor:
        length = input_ids.shape[1]
        x = self.words(input_ids) + self.places[:, :length]
        at = torch.arange(length)
        mask = (at[None, :] <= at[:, None])[None, None] & attention_mask[:, None, None, :].bool()
        for block in self.blocks:
            x = block(x, mask)
        logits = self.head(x)
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
        return loss + x.pow(2).mean() / length + logits.sum() * 1e-4 * length


@dataclass(frozen=True)
class Case:
    """A model, a maker of batches (size, seed) of the length that the seed says, and what is dynamic."""

    model: nn.Module
    batch: Callable[[int, int], dict[str, Any]]
    dynamic: Dynamic

    @property
    def captured(self) -> Captured:
        """Its capture in float64."""
        return models.captured(None, self.model.double(), self.batch, dynamic=self.dynamic)


def tokens(size: int, seed: int, mask: str | None = "attention_mask", length: int | None = None) -> dict[str, Any]:
    """Token batches padded to their longest sample, with ignored labels in the padding."""
    length = LENGTHS_TRIED[seed % len(LENGTHS_TRIED)] if length is None else length
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, models.VOCABULARY, (size, length), generator=generator)
    own = torch.randint(length // 2, length + 1, (size,), generator=generator)
    own[0] = length
    kept = torch.arange(length) < own[:, None]
    batch = {"input_ids": ids, "labels": torch.where(kept, ids.roll(-1, 1), -100)}
    return batch | ({mask: kept.long()} if mask else {})


def pairs(size: int, seed: int) -> dict[str, Any]:
    """Sequences and others of other lengths, which are made of them."""
    source = tokens(size, seed)
    source["labels"] = tokens(size, seed + 1, length=5 + seed % 3)["labels"]
    return source


def _alike(*names: str) -> dict[str, dict[int, str]]:
    return {name: {1: "S"} for name in names}


def _family(name: str) -> Case:
    return Case(models.hugging_face(name).model, tokens, _alike("input_ids", "labels", "attention_mask"))


def _two_lengths() -> Case:
    dynamic: Dynamic = {**_alike("input_ids", "attention_mask"), "labels": {1: "T"}}
    return Case(models.hugging_face("t5").model, pairs, dynamic)


def _padded() -> Case:
    torch.manual_seed(0)
    return Case(Padded(), tokens, _alike("input_ids", "labels", "attention_mask"))


LENGTHS: dict[str, Callable[[], Case]] = {
    "padded": _padded,
    "llama": lambda: _family("llama"),
    "gpt2": lambda: _family("gpt2"),
    "bert": lambda: _family("bert"),
    "t5": _two_lengths,
}
