"""Models that return more than their loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from galvatron.ir.capture import Dynamic

WIDTH, LENGTH, HEADS, VOCABULARY = 8, 4, 2, 13
Batch = dict[str, Tensor]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.norm, self.other_norm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.qkv(self.norm(x)).view(*x.shape[:2], 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(*heads.unbind(0), is_causal=True)
        x = x + self.out(attended.transpose(1, 2).reshape(x.shape))
        return x + self.down(F.gelu(self.up(self.other_norm(x))))


class Decoder(nn.Module):
    """A tied vocabulary that 2 does not divide, and outputs of every kind: along samples, a sum, the same for all."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.dropout = nn.Dropout(0.5)

    def forward(self, tokens: Tensor, labels: Tensor) -> dict[str, Any]:
        h, states = self.table(tokens), []
        for block in self.blocks:
            h = block(self.dropout(h))
            states.append(h)
        logits = F.linear(h, self.table.weight)
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return {
            "loss": loss,
            "logits": logits,
            "hidden": tuple(states),
            "next": logits[:, -1].argmax(-1),
            "flat": h.flatten(0, 1),
            "sequence_first": h.transpose(0, 1),
            "right": (logits.argmax(-1) == labels).sum(),
            "size": self.table.weight.square().sum(),
            "vocabulary": self.table.weight.t(),
        }


class Classified(NamedTuple):
    scores: Tensor
    pooled: Tensor


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.head = nn.ModuleList(Block() for _ in range(2)), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Classified:
        for block in self.blocks:
            x = block(x)
        return Classified(self.head(x.mean(1)), x.mean(1))


class Pairs(nn.Module):
    """The loss couples samples, at the end, and what couples them is an output too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(WIDTH, 2 * WIDTH)

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        first, second = (F.normalize(f(z.mean(1)), dim=-1) for f, z in ((self.first, x), (self.second, y)))
        similarity = first @ second.T
        loss = F.cross_entropy(similarity, torch.arange(len(x), device=x.device))
        return {"loss": loss, "first": first, "similarity": similarity}


@dataclass(frozen=True)
class Case:
    """A model, what is asked of it, a maker of batches (size, seed), its loss where it returns none, and what is
    dynamic."""

    model: nn.Module
    outputs: tuple[str, ...]
    batch: Callable[[int, int], Batch]
    loss_fn: Callable[[Any, Mapping[str, Any]], Tensor] | None = None
    dynamic: Dynamic | None = None


def _tokens(size: int, seed: int, length: int = LENGTH) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, VOCABULARY, (size, length), generator=generator)
    labels[::3, 1:] = -100
    return {"tokens": torch.randint(0, VOCABULARY, (size, length), generator=generator), "labels": labels}


def _tokens_of_some_length(size: int, seed: int) -> Batch:
    return _tokens(size, seed, length=LENGTH * (1 + seed))


def _floats(size: int, seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return {"x": torch.randn(size, LENGTH, WIDTH, generator=generator, dtype=torch.float64)}


def _pairs(size: int, seed: int) -> Batch:
    return {"x": _floats(size, seed)["x"], "y": _floats(size, seed + 1)["x"]}


def _own_loss(output: Classified, batch: Mapping[str, Any]) -> Tensor:
    return output.scores.square().sum(-1).mean()


def case(name: str) -> Case:
    """The case called `decoder`, `lengths` (the same for batches of any length), `classifier` or `pairs`; equal weights
    in every process."""
    torch.manual_seed(0)
    if name in ("decoder", "lengths"):
        others = ("hidden.1", "next", "flat", "sequence_first", "right", "size", "vocabulary")
        names = ("logits", "hidden.0", *others)
        if name == "decoder":
            return Case(Decoder().double(), names, _tokens)
        free: Dynamic = {"tokens": {1: "S"}, "labels": {1: "S"}}
        return Case(Decoder().double(), names, _tokens_of_some_length, dynamic=free)
    if name == "logits":
        return Case(Decoder().double(), ("logits",), _tokens)
    if name == "classifier":
        return Case(Classifier().double(), ("scores", "pooled"), _floats, _own_loss)
    return Case(Pairs().double(), ("first", "similarity"), _pairs)


def _inside(value: Any, key: str) -> Any:
    return value[int(key)] if key.isdigit() else getattr(value, key)


def expected(name: str, batch: Batch) -> dict[str, Tensor]:
    """What the model returns in eval mode, by the names under which it is asked for."""
    model = case(name).model.eval()
    with torch.no_grad():
        returned = model(**batch)
    found: dict[str, Tensor] = {}
    for output in case(name).outputs:
        value = returned
        for key in output.split("."):
            value = value[key] if isinstance(value, dict) else _inside(value, key)
        found[output] = value
    return found
