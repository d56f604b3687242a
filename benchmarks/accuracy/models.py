"""The models of published measurements, written by hand as their authors describe them, to be captured on `meta`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
    """What a decoder is: its sizes, and what of it is written how.

    Attributes:
        family: `gpt` (learned positions, LayerNorm with biases, an MLP of two matrices) or `llama` (rotary positions,
            RMSNorm, a gated MLP of three matrices, no biases).
        key_heads: of keys and values, shared by the heads.
        flash: whether attention is one kernel; otherwise its scores are computed, masked, normalised and dropped out.
        fused_softmax: whether scale, mask and softmax of scores that are written out are one kernel, which then moves
            what a softmax moves.
        dropout: its probability behind embedding, attention and MLP, and, where it is written out, in attention.
        scores_dropped: whether dropout is in attention too.
        activation: of the MLP of a `gpt`.
        biases: whether the matrices of a `gpt` have biases.
        narrow: the width of the embedding and of the head, where it is not that of the layers, with a matrix between.
        norm_first: whether a `gpt` normalises before attention and MLP, and so once more at its end.
        norm_written: whether the norm of a `llama` is written out, in 32 bits, and not torch's own.
        tied: whether head and embedding are one matrix.
        headless: whether there is no head, and the last layer's features are the logits.
    """

    family: str
    layers: int
    width: int
    heads: int
    sequence: int
    vocabulary: int
    hidden: int
    key_heads: int
    flash: bool = False
    fused_softmax: bool = False
    dropout: float = 0.0
    scores_dropped: bool = True
    activation: str = "gelu"
    biases: bool = True
    narrow: int | None = None
    norm_first: bool = True
    norm_written: bool = False
    tied: bool = True
    headless: bool = False

    def __str__(self) -> str:
        return f"{self.family}-{self.layers}x{self.width}"

    @property
    def head_width(self) -> int:
        """Of one attention head."""
        return self.width // self.heads


LLAMA_2_7B = Shape("llama", 32, 4096, 32, 4096, 32000, 11008, 32, flash=True, tied=False)
LLAMA_3_405B = Shape("llama", 126, 16384, 128, 8192, 128256, 53248, 8, flash=True, tied=False)
"""Their sizes as published."""


class Attention(nn.Module):
    """Causal self-attention, of which query heads may share those of keys and values."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        biased = shape.family == "gpt" and shape.biases
        self.query = nn.Linear(shape.width, shape.width, bias=biased)
        self.key = nn.Linear(shape.width, shape.key_heads * shape.head_width, bias=biased)
        self.value = nn.Linear(shape.width, shape.key_heads * shape.head_width, bias=biased)
        self.out = nn.Linear(shape.width, shape.width, bias=biased)

    def forward(self, x: Tensor, turned: Callable[[Tensor], Tensor], mask: Tensor | None) -> Tensor:
        q, k, v = (
            projection(x).unflatten(-1, (-1, self.shape.head_width)).transpose(1, 2)
            for projection in (self.query, self.key, self.value)
        )
        q, k = turned(q), turned(k)
        if self.shape.flash:
            shared = self.shape.key_heads != self.shape.heads
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=shared)
        else:
            scores = q @ (k * (1 / math.sqrt(self.shape.head_width))).transpose(2, 3)
            weights = (scores if mask is None else scores.masked_fill(mask, -1e4)).softmax(-1)
            if self.shape.scores_dropped:
                weights = F.dropout(weights, self.shape.dropout, self.training)
            mixed = weights @ v
        return self.out(mixed.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two matrices around an activation, or SwiGLU."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        biased = shape.family == "gpt" and shape.biases
        self.up = nn.Linear(shape.width, shape.hidden, bias=biased)
        self.gate = nn.Linear(shape.width, shape.hidden, bias=False) if shape.family == "llama" else None
        self.down = nn.Linear(shape.hidden, shape.width, bias=biased)
        self.relu = shape.activation == "relu"

    def forward(self, x: Tensor) -> Tensor:
        if self.gate is not None:
            return self.down(F.silu(self.gate(x)) * self.up(x))
        return self.down(F.relu(self.up(x)) if self.relu else F.gelu(self.up(x), approximate="tanh"))


class Block(nn.Module):
    """Attention and MLP, each around a residual connection, with a norm before or after."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.attention_norm, self.mlp_norm = _norm(shape), _norm(shape)
        self.attention, self.mlp = Attention(shape), Mlp(shape)

    def forward(self, x: Tensor, turned: Callable[[Tensor], Tensor], mask: Tensor | None) -> Tensor:
        for norm, part in (
            (self.attention_norm, lambda t: self.attention(t, turned, mask)),
            (self.mlp_norm, self.mlp),
        ):
            first = self.shape.norm_first
            x = x + self._dropped(part(norm(x))) if first else norm(x + self._dropped(part(x)))
        return x

    def _dropped(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.shape.dropout, self.training)


class Decoder(nn.Module):
    """Embedding, blocks, head; given labels it returns the mean loss."""

    cos: Tensor
    sin: Tensor
    mask: Tensor | None

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        inner = shape.narrow or shape.width
        self.embedding = nn.Embedding(shape.vocabulary, inner)
        self.widen = nn.Linear(inner, shape.width, bias=False) if shape.narrow else None
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = _norm(shape) if shape.norm_first else None
        self.narrow = nn.Linear(shape.width, inner, bias=False) if shape.narrow else None
        self.head = nn.Identity() if shape.headless else nn.Linear(inner, shape.vocabulary, bias=False)
        if shape.tied and not shape.headless:
            self.head.weight = self.embedding.weight
        if shape.family == "gpt":
            self.positions = nn.Embedding(shape.sequence, shape.width)
        else:
            frequencies = 10000.0 ** (-torch.arange(0, shape.head_width, 2) / shape.head_width)
            angles = torch.outer(torch.arange(shape.sequence), frequencies).repeat(1, 2)
            self.register_buffer("cos", angles.cos())
            self.register_buffer("sin", angles.sin())
        if not (shape.flash or shape.fused_softmax):
            hidden = torch.ones(shape.sequence, shape.sequence, dtype=torch.bool).triu(1)
            self.register_buffer("mask", hidden)
        else:
            self.mask = None

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        x = self.embedding(tokens)
        if self.widen is not None:
            x = self.widen(x)
        if self.shape.family == "gpt":
            x = F.dropout(x + self.positions.weight, self.shape.dropout, self.training)
        for block in self.blocks:
            x = block(x, self._turned, self.mask)
        if self.norm is not None:
            x = self.norm(x)
        logits = self.head(x if self.narrow is None else self.narrow(x))
        return F.cross_entropy(logits.float().flatten(0, 1), labels.flatten())

    def _turned(self, x: Tensor) -> Tensor:
        """Queries or keys with rotary positions, where there are any."""
        if self.shape.family == "gpt":
            return x
        first, second = x.chunk(2, -1)
        cos, sin = self.cos.to(x.dtype), self.sin.to(x.dtype)
        return x * cos + torch.cat([-second, first], -1) * sin


def on_meta(shape: Shape) -> nn.Module:
    """The model without memory."""
    with torch.device("meta"):
        return Decoder(shape)


def batch_of(shape: Shape, samples: int) -> dict[str, Tensor]:
    """Tokens and labels without memory."""
    tokens = torch.zeros(samples, shape.sequence, dtype=torch.long, device="meta")
    return {"tokens": tokens, "labels": tokens.clone()}


class WrittenNorm(nn.Module):
    """RMSNorm as a formula in 32 bits."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps, self.weight = eps, nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)).to(x.dtype) * self.weight


def _norm(shape: Shape) -> nn.Module:
    if shape.family == "gpt":
        return nn.LayerNorm(shape.width)
    return (WrittenNorm if shape.norm_written else nn.RMSNorm)(shape.width, eps=1e-5)
