"""Small models whose forward does something unusual: writes into slices, computes with sizes, makes targets, turns
complex numbers, or reads inputs that hold no samples."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, LENGTH = 8, 4
Others = dict[str, Callable[[int, torch.Generator], Tensor]]


@dataclass(frozen=True)
class Forward:
    """What every block does to its state, what the loss makes of the last one and of other inputs, and those inputs."""

    block: Callable[[Tensor], Tensor] = torch.tanh
    loss: Callable[..., Tensor] = lambda h, target: F.mse_loss(h, target)
    others: Others = field(default_factory=dict)


class Blocks(nn.Module):
    """Residual blocks of one matrix each."""

    turn: Tensor

    def __init__(self, forward: Forward, depth: int = 3) -> None:
        super().__init__()
        self.does = forward
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(depth))

    def forward(self, x: Tensor, target: Tensor, **others: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + self.does.block(layer(x))
        return self.does.loss(x, target, **others)


def inputs(forward: Forward, size: int, seed: int) -> dict[str, Tensor]:
    """x, target: [size, LENGTH, WIDTH], and the others."""
    generator = torch.Generator().manual_seed(seed)
    x, target = torch.randn(2, size, LENGTH, WIDTH, generator=generator, dtype=torch.float64)
    return {"x": x, "target": target, **{name: make(size, generator) for name, make in forward.others.items()}}


def _halves(h: Tensor) -> Tensor:
    y = h.new_empty(h.shape)
    y[..., : WIDTH // 2], y[..., WIDTH // 2 :] = h[..., WIDTH // 2 :].tanh(), h[..., : WIDTH // 2]
    return y


def _columns(h: Tensor) -> Tensor:
    y = h.clone()
    y[..., 0] = 0.5
    y[:, 1:, -1] *= 2.0
    y[:, 0] += 1.0
    return y.tanh()


def _scan(h: Tensor) -> Tensor:
    states, state = torch.empty_like(h), torch.zeros_like(h[:, 0])
    for step in range(LENGTH):
        state = torch.tanh(0.5 * state + h[:, step])
        states[:, step] = state
    return states


def _masked(h: Tensor) -> Tensor:
    y = h.clone()
    y[h > 0.5] = 0.0
    y[:, torch.arange(LENGTH) > 2] = 1.0
    return y.tanh()


def _gaps(h: Tensor) -> Tensor:
    y = torch.zeros_like(h)
    y[..., ::2], y[..., 1::2] = h[..., 1::2], -h[..., ::2]
    return y.tanh()


def _listed(h: Tensor) -> Tensor:
    y = h.clone()
    y[:, :, torch.tensor([1, 3])] = h[:, :, 4:6]
    y.index_add_(2, torch.tensor([0, 0, 7]), h[:, :, :3])
    y.diagonal(dim1=1, dim2=2).zero_()
    return y.tanh()


def _per_sample(h: Tensor) -> Tensor:
    y = h.clone()
    y[torch.arange(h.shape[0]), h.sum(-1).argmax(-1)] = 0.25
    return y.tanh()


def _turned(h: Tensor) -> Tensor:
    z = torch.view_as_complex(h.unflatten(-1, (-1, 2)))
    angles = torch.arange(LENGTH, dtype=h.dtype)[:, None] / (1 + torch.arange(WIDTH // 2, dtype=h.dtype))
    z = z * torch.polar(torch.ones_like(angles), angles)
    return torch.view_as_real(z * z.conj().mean(-1, keepdim=True)).flatten(-2).tanh()


def _attended(h: Tensor) -> Tensor:
    """Attention over the sequence whose queries and keys are turned by complex numbers."""
    z = torch.view_as_complex(h.view(*h.shape[:2], 2, WIDTH // 4, 2))
    angles = torch.arange(LENGTH, dtype=h.dtype)[:, None, None] * torch.arange(1, 1 + WIDTH // 4, dtype=h.dtype)
    q = torch.view_as_real(z * torch.polar(torch.ones_like(angles), angles)).flatten(3).transpose(1, 2)
    v = h.view(*h.shape[:2], 2, WIDTH // 2).transpose(1, 2)
    return F.scaled_dot_product_attention(q, q, v, is_causal=True).transpose(1, 2).flatten(2)


def _unlike_when_traced(h: Tensor) -> Tensor:
    return h.relu() if torch.compiler.is_compiling() else h.tanh()


def _repeated(h: Tensor, target: Tensor) -> Tensor:
    twice = h.repeat_interleave(2, dim=1, output_size=2 * LENGTH)
    return F.mse_loss(twice * twice.softmax(1), target.repeat_interleave(2, dim=1))


def _squares(factor: Callable[[Tensor], float]) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda h, target: (h - target).pow(2).sum() * factor(h)


def _labelled(labels: Callable[[int], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda h, target: F.cross_entropy((h * target).sum(1), labels(h.shape[0]))


WRITES = {
    "write-halves": Forward(_halves),
    "write-columns": Forward(_columns),
    "write-scan": Forward(_scan),
    "write-masked": Forward(_masked),
    "write-gaps": Forward(_gaps),
    "write-listed": Forward(_listed),
    "write-per-sample": Forward(_per_sample),
}
SIZES = {
    "size-inverse": Forward(loss=_squares(lambda h: 1.0 / h.shape[0])),
    "size-length": Forward(loss=_squares(lambda h: 1 / (len(h) * h.shape[1]))),
    "size-root": Forward(loss=_squares(lambda h: 1 / math.sqrt(h.shape[0]))),
    "size-half": Forward(loss=_squares(lambda h: h.shape[0] / 2 + h.shape[0] // 3)),
    "size-branch": Forward(loss=_squares(lambda h: 0.5 if h.shape[0] < 64 else 2.0)),
    "size-repeat": Forward(
        loss=lambda h, target: F.mse_loss(h, h.new_full((1, 2, 1), 0.5).repeat(len(h), 2, 1) * target)
    ),
}
TARGETS = {
    "target-zeros": Forward(loss=_labelled(lambda n: torch.zeros(n, dtype=torch.long))),
    "target-full": Forward(loss=_labelled(lambda n: torch.full((n,), 3))),
    "target-ones": Forward(loss=lambda h, t: F.binary_cross_entropy_with_logits(h[:, 0, 0], h.new_ones(h.shape[0]))),
}
INPUTS = {
    "input-table": Forward(
        loss=lambda h, target, table: ((h - target) @ table).pow(2).mean(),
        others={"table": lambda n, g: torch.randn(WIDTH, 3, generator=g, dtype=torch.float64)},
    ),
    "input-count": Forward(
        loss=lambda h, target, count: F.mse_loss(h, target, reduction="sum") / count,
        others={"count": lambda n, g: torch.tensor(n - 1)},
    ),
    "input-row": Forward(
        loss=lambda h, target, shift: F.mse_loss(h + shift, target),
        others={"shift": lambda n, g: torch.randn(1, LENGTH, WIDTH, generator=g, dtype=torch.float64)},
    ),
}
COMPLEX = {"complex-turned": Forward(_turned), "complex-attended": Forward(_attended)}
ALIGNED = {
    "aligned-mean": Forward(
        loss=lambda h, target, labels, lengths: F.ctc_loss(
            (h * target).log_softmax(-1).transpose(0, 1), labels, torch.full_like(lengths, LENGTH), lengths
        ),
        others={
            "labels": lambda n, g: torch.randint(1, WIDTH, (n, 2), generator=g),
            "lengths": lambda n, g: torch.randint(0, 3, (n,), generator=g),
        },
    ),
}


def _converted_without_gradients(h: Tensor) -> Tensor:
    with torch.no_grad():
        scale = h.to(h.dtype).double().abs().mean(-1, keepdim=True)  # of h itself, which keeps its gradient
    return torch.tanh(h) * scale


OTHERS = {
    "traced-repeated": Forward(_unlike_when_traced, _repeated),
    "converted-without-gradients": Forward(_converted_without_gradients),
}
FORWARDS = {**WRITES, **SIZES, **TARGETS, **INPUTS, **COMPLEX, **ALIGNED, **OTHERS}
