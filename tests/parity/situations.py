"""Losses that people write and that look across the samples of a batch, each behind two layers."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, LENGTH = 8, 4
Batch = dict[str, Tensor]


class Behind(nn.Module):
    """Two layers on every position of a sequence, and a loss of what comes out."""

    def __init__(self, loss: Callable[[Behind, Tensor, Tensor], Tensor], norm: nn.Module | None = None) -> None:
        super().__init__()
        self.inner, self.outer, self.loss = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH), loss
        self.norm = norm

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        h = x if self.norm is None else self.norm(x.transpose(1, 2)).transpose(1, 2)
        return self.loss(self, h + self.outer(F.gelu(self.inner(h))), labels)


def batch_of(size: int, seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size, LENGTH, WIDTH, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, WIDTH, (size,), generator=generator)
    labels[::5] = -100
    return {"x": x, "labels": labels}


def root_of_a_mean(model: Behind, h: Tensor, labels: Tensor) -> Tensor:
    return h.pow(2).mean().sqrt()


def spread_over_the_batch(model: Behind, h: Tensor, labels: Tensor) -> Tensor:
    z = h.mean(1)
    off_diagonal = (z - z.mean(0)).T @ (z - z.mean(0)) * (1 - torch.eye(WIDTH, dtype=z.dtype))
    return (2 - z.std(0)).relu().mean() + off_diagonal.pow(2).sum() / z.shape[0] ** 2


def ratio_of_sums(model: Behind, h: Tensor, labels: Tensor) -> Tensor:
    weight = h[..., 0].sigmoid()
    return (weight * h.pow(2).mean(-1)).sum() / weight.sum()


def balance_of_experts(model: Behind, h: Tensor, labels: Tensor) -> Tensor:
    probability = h.softmax(-1)
    share = F.one_hot(probability.argmax(-1), WIDTH).to(h.dtype).mean((0, 1))
    return F.cross_entropy(h.mean(1), labels) + 0.1 * WIDTH * (share * probability.mean((0, 1))).sum()


def contrast_by_diagonal(model: Behind, h: Tensor, labels: Tensor) -> Tensor:
    first, second = F.normalize(h[:, 0], dim=-1), F.normalize(h[:, 1:].mean(1), dim=-1)
    return -(5 * first @ second.T).log_softmax(-1).diagonal().mean()


def contrast_with_targets(model: Behind, h: Tensor, labels: Tensor) -> Tensor:
    logits = h[:, 0] @ h[:, 1].T
    own = torch.arange(logits.shape[0], device=h.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def penalty_on_weights(model: Behind, h: Tensor, labels: Tensor) -> Tensor:
    penalty = 0.1 * model.inner.weight.pow(2).sum() + 0.3 * model.outer.weight.abs().mean() + model.inner.bias.norm()
    return F.cross_entropy(h.mean(1), labels) + penalty


def clamped_where_one_is_large(model: Behind, h: Tensor, labels: Tensor) -> Tensor:
    if not torch.isfinite(h).all():
        greatest = torch.finfo(h.dtype).max
        h = torch.clamp(h, -greatest, greatest)
    if (h > 2).any():
        h = torch.clamp(h, -0.5, 0.5)
    return F.cross_entropy(h.mean(1), labels)


def windows_of_samples(model: Behind, h: Tensor, labels: Tensor) -> Tensor:
    size = h.shape[0]
    windows = h.tanh()[:, :, None, :3].expand(-1, -1, LENGTH, -1).reshape(size * LENGTH, LENGTH, 3)
    h = F.conv1d(h.reshape(1, size * LENGTH, WIDTH), windows, padding=1, groups=size).view(h.shape)
    return F.cross_entropy(h.mean(1), labels)


def norm_of_the_batch() -> Behind:
    norm = nn.BatchNorm1d(WIDTH, track_running_stats=False)
    return Behind(lambda model, h, labels: F.cross_entropy(h.mean(1), labels), norm)


SITUATIONS: dict[str, Callable[[], Behind]] = {
    loss.__name__: lambda loss=loss: Behind(loss)
    for loss in (
        root_of_a_mean,
        spread_over_the_batch,
        ratio_of_sums,
        balance_of_experts,
        contrast_by_diagonal,
        contrast_with_targets,
        penalty_on_weights,
        clamped_where_one_is_large,
        windows_of_samples,
    )
} | {"norm_of_the_batch": norm_of_the_batch}
