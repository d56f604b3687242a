"""What a row of the registry is, and how its batches are drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Batch = dict[str, Any]
Draw = Callable[[int, torch.Generator], Any]
"""`draw(samples, generator)`: an input of a batch, or a mapping of several that belong together."""

Loss = Callable[[Any, Mapping[str, Any]], Tensor]

VOCABULARY, LENGTH = 96, 16
"""Of the token batches, where a model does not want others."""


@dataclass(frozen=True)
class Subject:
    """A model, `batch(samples, seed)`, and its loss where forward returns none."""

    model: nn.Module
    batch: Callable[[int, int], Batch]
    loss_fn: Loss | None = None


@dataclass(frozen=True)
class Architecture:
    """One row.

    Attributes:
        name: unique.
        family: the file of the registry that has it.
        library: the distribution that the model comes from, `torch` where it is written here.
        make: builds it; called with torch's generator seeded.
        sequence: dim 1 of the residual stream is a sequence, so roles that shard it are tried.
        single: the model is in float32, since it cannot compute in float64.
    """

    name: str
    family: str
    library: str
    make: Callable[[], Subject]
    sequence: bool = False
    single: bool = False

    def build(self) -> Subject:
        """The model as people train it, but small, in float64 and without dropout; the same at every call.

        Raises:
            ImportError: the library is not installed.
        """
        torch.manual_seed(0)
        subject = self.make()
        model = subject.model.train() if self.single else subject.model.double().train()
        without_dropout(model)
        return subject if not self.single else replace(subject, batch=partial(_in_single, subject.batch))


def _in_single(batch: Callable[[int, int], Batch], samples: int, seed: int) -> Batch:
    found = batch(samples, seed)
    return {n: v.float() if isinstance(v, Tensor) and v.is_floating_point() else v for n, v in found.items()}


def without_dropout(model: nn.Module) -> None:
    """Sets every rate of dropout that modules hold to zero."""
    for module in model.modules():
        for name, value in vars(module).items():
            if isinstance(value, float) and (_is_rate(name) or isinstance(module, _DROPOUT) and name == "p"):
                setattr(module, name, 0.0)


_DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)


def _is_rate(name: str) -> bool:
    return "drop" in name or name == "mask_time_prob"


def batches(*together: Draw, **inputs: Draw) -> Callable[[int, int], Batch]:
    """A maker of batches: inputs by name, and draws that give several at once."""

    def make(samples: int, seed: int) -> Batch:
        generator = torch.Generator().manual_seed(seed)
        batch: Batch = {}
        for draw in together:
            batch |= draw(samples, generator)
        return batch | {name: draw(samples, generator) for name, draw in inputs.items()}

    return make


def floats(*shape: int) -> Draw:
    """Normal numbers, f64[samples, *shape]."""
    return lambda samples, generator: torch.randn(samples, *shape, generator=generator, dtype=torch.float64)


def uniform(*shape: int) -> Draw:
    """Numbers between 0 and 1, f64[samples, *shape]."""
    return lambda samples, generator: torch.rand(samples, *shape, generator=generator, dtype=torch.float64)


def integers(below: int, *shape: int, least: int = 0) -> Draw:
    """Whole numbers, i64[samples, *shape]."""
    return lambda samples, generator: torch.randint(least, below, (samples, *shape), generator=generator)


def corners(number: int, below: int) -> Draw:
    """Boxes by two corners, i64[samples, number, 4]."""

    def draw(samples: int, generator: torch.Generator) -> Tensor:
        low, high = torch.randint(0, below, (2, samples, number, 2), generator=generator).sort(0).values
        return torch.cat([low, high], -1)

    return draw


def ones(*shape: int, dtype: torch.dtype = torch.int64) -> Draw:
    """A mask that hides nothing."""
    return lambda samples, generator: torch.ones(samples, *shape, dtype=dtype)


def constant(value: Any) -> Draw:
    """The same at every step: a flag, or a tensor without samples."""
    return lambda samples, generator: value


def text(length: int = LENGTH, vocabulary: int = VOCABULARY, mask: bool = True, labels: str = "labels") -> Draw:
    """Tokens of unequal lengths, padded on the right: `input_ids`, labels that ignore the padding, `attention_mask`."""

    def draw(samples: int, generator: torch.Generator) -> Batch:
        tokens = torch.randint(3, vocabulary, (samples, length), generator=generator)
        lengths = torch.randint(length // 2, length + 1, (samples,), generator=generator)
        kept = torch.arange(length) < lengths[:, None]
        batch = {"input_ids": tokens, labels: torch.where(kept, tokens, -100)}
        return batch | ({"attention_mask": kept.long()} if mask else {})

    return draw


class Trained(nn.Module):
    """A model under a loss whose target the model itself does not take: forward takes both, and returns the loss."""

    def __init__(self, model: nn.Module, loss: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.model = model
        self.loss = loss

    def forward(self, target: Tensor, **inputs: Any) -> Tensor:
        return self.loss(self.model(**inputs), target)


class Classifier(nn.Module):
    """A classifier of images under cross-entropy."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(self.model(x), target)
