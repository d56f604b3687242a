"""The models of the parity tests by name, each in float64 with a maker of batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tests import models

Batch = dict[str, Any]


@dataclass(frozen=True)
class Subject:
    """A model, a maker of batches for it (size, seed), and its loss where it returns none."""

    model: nn.Module
    batch: Callable[[int, int], Batch]
    loss_fn: Callable[[Any, Any], Tensor] | None = None

    def loss(self, batch: Batch) -> Tensor:
        """What the unmodified model computes."""
        output = self.model(**batch)
        if self.loss_fn is not None:
            return self.loss_fn(output, batch)
        return output if isinstance(output, Tensor) else output.loss


class Skips(nn.Module):
    """A U-Net of linear layers: every way up also reads its way down, and the last one the input itself."""

    def __init__(self, width: int = 16, depth: int = 3) -> None:
        super().__init__()
        self.down = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.up = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(depth))
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        skips, h = [], x
        for layer in self.down:
            skips.append(h)
            h = torch.tanh(layer(h))
        for layer in self.up:
            h = torch.tanh(layer(torch.cat([h, skips.pop()], dim=-1)))
        return nn.functional.mse_loss(self.out(h) + x, target)


class Weighted(nn.Module):
    """Residual blocks with buffers and a frozen matrix; the loss weighs samples by inputs that only it reads."""

    running: Tensor
    order: Tensor

    def __init__(self, width: int = 16, depth: int = 4) -> None:
        super().__init__()
        self.register_buffer("running", torch.rand(width))
        self.register_buffer("order", torch.randperm(width), persistent=False)
        self.frozen = nn.Parameter(torch.randn(width, width) / 4, requires_grad=False)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
            for _ in range(depth)
        )

    def forward(self, x: Tensor, target: Tensor, weight: Tensor, keep: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x * self.running) @ self.frozen
        errors = (x[:, :, self.order] - target).pow(2).mean(-1) * keep
        return (errors.sum(-1) * weight).sum() / keep.sum()


class Shared(nn.Module):
    """One block applied again and again, and a head that is the embedding."""

    def __init__(self, width: int = 16, times: int = 4) -> None:
        super().__init__()
        self.times = times
        self.embedding = nn.Embedding(models.VOCABULARY, width)
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for _ in range(self.times):
            x = x + self.down(torch.relu(self.up(self.norm(x))))
        logits = x @ self.embedding.weight.T
        return nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100)


class Encoder(nn.Module):
    """`nn.TransformerEncoder` under a classifier of sequences that returns logits, not a loss."""

    def __init__(self, norm_first: bool = True, width: int = 16, heads: int = 4, classes: int = 6) -> None:
        super().__init__()
        self.embedding = nn.Embedding(models.VOCABULARY, width)
        block = nn.TransformerEncoderLayer(
            width, heads, 2 * width, dropout=0.0, batch_first=True, norm_first=norm_first, activation="gelu"
        )
        self.encoder = nn.TransformerEncoder(block, 3, enable_nested_tensor=False)
        self.head = nn.Linear(width, classes)

    def forward(self, tokens: Tensor, label: Tensor) -> Tensor:
        return self.head(self.encoder(self.embedding(tokens)).mean(1))


def _floats(size: int, seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    x, target = torch.randn(2, size, 16, generator=generator, dtype=torch.float64)
    return {"x": x, "target": target}


def _weighted(size: int, seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    x, target = torch.randn(2, size, 6, 16, generator=generator, dtype=torch.float64)
    weight = torch.rand(size, generator=generator, dtype=torch.float64)
    keep = torch.rand(size, 6, generator=generator) < 0.7
    return {"x": x, "target": target, "weight": weight, "keep": keep}


def _classes(size: int, seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, models.VOCABULARY, (size, models.SEQUENCE), generator=generator)
    return {"tokens": tokens, "label": torch.randint(0, 6, (size,), generator=generator)}


def _tokens(size: int, seed: int) -> Batch:
    return models.ragged_tokens(size, seed, "tokens", "targets")


def _classifier_loss(output: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(output, batch["label"], label_smoothing=0.1)


def _of(case: models.Case) -> Subject:
    return Subject(case.model, case.batch)


def _hugging_face(name: str, **options: Any) -> Callable[[], Subject]:
    return lambda: _of(models.hugging_face(name, **options))


SUBJECTS: dict[str, Callable[[], Subject]] = {
    "gpt": lambda: _of(models.gpt()),
    "gpt-untied": lambda: _of(models.gpt(tied=False)),
    "llama": _hugging_face("llama", mask=False),
    "llama-tied": _hugging_face("llama", tie_word_embeddings=True),
    "gpt2": _hugging_face("gpt2"),
    "gpt2-untied": _hugging_face("gpt2", mask=False, tie_word_embeddings=False),
    "bert": _hugging_face("bert"),
    "bert-untied": _hugging_face("bert", tie_word_embeddings=False),
    "t5": _hugging_face("t5"),
    "vit": _hugging_face("vit"),
    "qwen3": _hugging_face("qwen3"),
    "mixtral": _hugging_face("mixtral"),
    "mistral": _hugging_face("mistral", sliding_window=4),
    "gemma": _hugging_face("gemma"),
    "opt": _hugging_face("opt"),
    "gpt-neox": _hugging_face("gpt-neox"),
    "skips": lambda: Subject(Skips().double(), _floats),
    "weighted": lambda: Subject(Weighted().double(), _weighted),
    "shared": lambda: Subject(Shared().double(), _tokens),
    "encoder": lambda: Subject(Encoder().double(), _classes, _classifier_loss),
    "encoder-post-norm": lambda: Subject(Encoder(norm_first=False).double(), _classes, _classifier_loss),
}


def ignore_labels(batch: Batch, samples: slice) -> Batch:
    """The batch with all labels of some samples ignored."""
    name = next(name for name in ("labels", "targets") if name in batch)
    labels = batch[name].clone()
    labels[samples] = -100
    return batch | {name: labels}
