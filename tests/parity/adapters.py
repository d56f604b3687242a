"""Decoders of which little trains: a frozen base with low-rank adapters, as fine-tuning has it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests import models

HEADS, RANK = 4, 2


class Adapted(nn.Module):
    """A frozen product, and beside it one with two small matrices that trains."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.base = nn.Linear(inputs, outputs)
        self.base.requires_grad_(False)
        self.down, self.up = nn.Linear(inputs, RANK, bias=False), nn.Linear(RANK, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + 2.0 * self.up(self.down(x))


class Block(nn.Module):
    """One of a decoder, all of it frozen but for its adapters, if it has any."""

    def __init__(self, width: int, adapted: bool) -> None:
        super().__init__()
        product = Adapted if adapted else nn.Linear
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.query, self.value = product(width, width), product(width, width)
        self.key, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(adapted and name.split(".")[1] in ("down", "up"))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norms[0](x)
        q, k, v = (part(h).unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in (self.query, self.key, self.value))
        x = x + self.out(nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return x + self.down(nn.functional.gelu(self.up(self.norms[1](x))))


class Decoder(nn.Module):
    """Adapters in some of its blocks; a frozen embedding, which is the head too unless that trains."""

    def __init__(
        self, adapted: tuple[bool, ...] = (False, True, True, False), head: bool = False, width: int = 16
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(models.VOCABULARY, width).requires_grad_(False)
        self.blocks = nn.ModuleList(Block(width, each) for each in adapted)
        self.head = nn.Linear(width, models.VOCABULARY, bias=False)
        if not head:
            self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return nn.functional.cross_entropy(self.head(x).flatten(0, 1), targets.flatten(), ignore_index=-100)


def low_rank(model: Any) -> nn.Module:
    """A Llama with adapters of `peft`, which trains nothing else."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(1)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
    return peft.get_peft_model(model, config)


def without_bottom(model: Any) -> nn.Module:
    """One of which the embedding and the first half of the layers is frozen."""
    layers = model.model.layers
    for part in (model.model.embed_tokens, *layers[: len(layers) // 2]):
        part.requires_grad_(False)
    return model


def without_embedding(model: Any) -> nn.Module:
    """One of which the embedding is frozen."""
    model.model.embed_tokens.requires_grad_(False)
    return model


def with_head_alone(model: Any) -> nn.Module:
    """One of which nothing but the head trains."""
    model.model.requires_grad_(False)
    return model


LITTLE: dict[str, Callable[[Any], nn.Module]] = {
    "low-rank": low_rank,
    "without-bottom": without_bottom,
    "without-embedding": without_embedding,
    "head-alone": with_head_alone,
}
"""What becomes of a Llama of which only a part trains."""
