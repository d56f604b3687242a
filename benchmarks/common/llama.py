"""Llama as people write it by hand, small enough to time: what is compiled, and what the peers parallelise."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Batch = dict[str, Tensor]
"""`tokens` and `labels`, both i64[samples, sequence]."""


@dataclass(frozen=True)
class Size:
    """The sizes of a model; with `experts` each feed-forward is so many of them, of which a token chooses `chosen`."""

    vocabulary: int = 8192
    width: int = 512
    hidden: int = 1408
    heads: int = 8
    layers: int = 6
    sequence: int = 256
    experts: int = 0
    chosen: int = 2

    @property
    def parameters(self) -> int:
        """How many numbers the model trains."""
        feed_forward = 3 * self.width * self.hidden * max(1, self.experts) + self.width * self.experts
        block = 4 * self.width**2 + feed_forward + 2 * self.width
        return self.layers * block + 2 * self.vocabulary * self.width + self.width


class Attention(nn.Module):
    """Causal self-attention with rotary positions; counts heads by width, so it also runs on a part of them."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.head_width = size.width // size.heads
        self.wq, self.wk, self.wv, self.wo = (nn.Linear(size.width, size.width, bias=False) for _ in range(4))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        q, k, v = (w(x).unflatten(-1, (-1, self.head_width)).transpose(1, 2) for w in (self.wq, self.wk, self.wv))
        q, k = (t * cos + _rotated(t) * sin for t in (q, k))
        return self.wo(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


def _rotated(x: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat([-second, first], -1)


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.w1, self.w3 = (nn.Linear(size.width, size.hidden, bias=False) for _ in range(2))
        self.w2 = nn.Linear(size.hidden, size.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Experts(nn.Module):
    """SwiGLU of several experts: a token goes to those that a router finds most likely, and theirs are weighted."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.chosen = size.chosen
        self.router = nn.Linear(size.width, size.experts, bias=False)
        self.w13 = nn.Parameter(torch.empty(size.experts, 2 * size.hidden, size.width))
        self.w2 = nn.Parameter(torch.empty(size.experts, size.width, size.hidden))

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, 1)
        weights, ids = self.routed(rows)
        made = self.computed(rows.repeat_interleave(self.chosen, 0), ids.flatten())
        return (made.unflatten(0, (-1, self.chosen)) * weights.unsqueeze(-1)).sum(1).view_as(x)

    def routed(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Of each token the weights of its experts, and their numbers, both [tokens, chosen]."""
        weights, ids = self.router(rows).softmax(-1).topk(self.chosen)
        return weights / weights.sum(-1, keepdim=True), ids

    def computed(self, rows: Tensor, ids: Tensor) -> Tensor:
        """Each row by the expert of its number."""
        gate, up = torch.bmm(self.w13[ids], rows.unsqueeze(-1)).squeeze(-1).chunk(2, -1)
        return torch.bmm(self.w2[ids], (F.silu(gate) * up).unsqueeze(-1)).squeeze(-1)


class Block(nn.Module):
    """Attention and feed-forward, each after a norm and around a residual connection."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.attention_norm, self.ffn_norm = nn.RMSNorm(size.width, eps=1e-5), nn.RMSNorm(size.width, eps=1e-5)
        self.attention = Attention(size)
        self.feed_forward = Experts(size) if size.experts else FeedForward(size)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), cos, sin)
        return x + self.feed_forward(self.ffn_norm(x))


class Llama(nn.Module):
    """A decoder; with labels it returns the mean loss."""

    cos: Tensor
    sin: Tensor

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.embedding = nn.Embedding(size.vocabulary, size.width)
        self.layers = nn.ModuleList(Block(size) for _ in range(size.layers))
        self.norm = nn.RMSNorm(size.width, eps=1e-5)
        self.output = nn.Linear(size.width, size.vocabulary, bias=False)
        width = size.width // size.heads
        frequencies = 10000.0 ** (-torch.arange(0, width, 2) / width)
        angles = torch.outer(torch.arange(size.sequence), frequencies).repeat(1, 2)
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x, self.cos, self.sin)
        return loss_of(self.output(self.norm(x)), labels)


def loss_of(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean cross-entropy of all tokens."""
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten())


def batch_of(size: Size, samples: int, seed: int) -> Batch:
    """Random tokens with the next ones as labels; the same on every rank."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, size.vocabulary, (samples, size.sequence + 1), generator=generator)
    return {"tokens": tokens[:, :-1].contiguous(), "labels": tokens[:, 1:].contiguous()}
