"""What is measured on this machine: models that are small enough, and plans with every role, level and schedule."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from accuracy.models import Decoder, Shape


@dataclass(frozen=True)
class Model:
    """A model that is measured, with the samples of its global batch and the plans for four devices."""

    shape: Shape
    samples: int
    plans: tuple[str, ...]

    def build(self) -> nn.Module:
        """The model with the same random weights everywhere."""
        torch.manual_seed(0)
        model = Decoder(self.shape)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)
        return model

    def batch(self) -> dict[str, Tensor]:
        """Random tokens with the next ones as labels, the same on every rank."""
        shape = self.shape
        generator = torch.Generator().manual_seed(1)
        tokens = torch.randint(0, shape.vocabulary, (self.samples, shape.sequence + 1), generator=generator)
        return {"tokens": tokens[:, :-1].contiguous(), "labels": tokens[:, 1:].contiguous()}


RANKS = 4

_SMALL = (
    "pp1/m1/gpipe/dp4",
    "pp1/m4/gpipe/dp4",
    "pp1/m1/gpipe/dp4-zero1",
    "pp1/m2/gpipe/dp4-zero2",
    "pp1/m2/gpipe/dp4-zero3",
    "pp1/m2/gpipe/dp4-recompute",
    "pp1/m1/gpipe/dp4-recompute=selective",
    "pp1/m1/gpipe/dp2-tp2",
    "pp1/m2/gpipe/dp2-tp2+sp",
    "pp1/m1/gpipe/tp4",
    "pp1/m1/gpipe/dp2-ulysses2",
    "pp1/m1/gpipe/dp2-cp2",
    "pp2/m4/gpipe/dp2",
    "pp2/m4/1f1b/dp2-zero1",
    "pp4/m8/1f1b/dp1",
    "pp2/m4/interleaved2/dp2",
    "pp2/m4/zbv/dp2",
    "pp2/m2/1f1b/tp2",
)

_LARGE = (
    "pp1/m1/gpipe/dp4",
    "pp1/m2/gpipe/dp4-zero3-recompute=attention",
    "pp1/m2/gpipe/dp2-tp2-zero2",
    "pp1/m1/gpipe/tp4+sp",
    "pp1/m2/gpipe/dp4-recompute",
    "pp1/m1/gpipe/dp2-cp2-zero1",
    "pp2/m4/1f1b/dp2",
    "pp2/m2/gpipe/tp2+sp",
    "pp4/m8/1f1b/dp1",
    "pp4/m4/gpipe/dp1-recompute",
    "pp2/m4/interleaved2/dp2-zero1",
    "pp2/m8/zbv/dp1-ulysses2",
)

_GPT = (
    "pp1/m1/gpipe/dp4",
    "pp1/m4/gpipe/dp4-zero2",
    "pp1/m1/gpipe/dp2-tp2+sp-zero1",
    "pp1/m1/gpipe/tp4",
    "pp1/m1/gpipe/dp2-ulysses2-recompute",
    "pp1/m1/gpipe/dp4-recompute=attention",
    "pp2/m4/1f1b/dp2",
    "pp2/m4/gpipe/tp2",
    "pp4/m8/1f1b/dp1",
    "pp2/m4/interleaved2/dp2",
)

MODELS = {
    "llama-small": Model(Shape("llama", 4, 256, 8, 128, 1024, 704, 4, flash=True, tied=False), 16, _SMALL),
    "llama-large": Model(Shape("llama", 6, 384, 6, 256, 2048, 1024, 6, flash=True, tied=False), 8, _LARGE),
    "gpt": Model(Shape("gpt", 4, 256, 4, 128, 1024, 1024, 4, flash=True), 16, _GPT),
}
"""Models by name. A step takes some tenths of a second on two cores, so that they can be repeated."""
