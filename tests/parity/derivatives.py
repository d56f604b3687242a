"""Models whose forward takes gradients itself: penalties on them, differential equations, steps of inner optimizers."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, LENGTH = 8, 4
Batch = dict[str, Tensor]


class Energy(nn.Module):
    """A number for each sample, from two layers on every position with a norm between, and a loss of a function."""

    def __init__(self, loss: Callable[[Energy, Tensor, Tensor], Tensor], norm: nn.Module | None = None) -> None:
        super().__init__()
        self.inner, self.outer, self.loss = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, 1), loss
        self.norm = nn.Identity() if norm is None else norm

    def of(self, x: Tensor) -> Tensor:
        return self.outer(F.silu(self.norm(self.inner(x)))).mean((1, 2))

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        return self.loss(self, x, target)


def batch_of(size: int, seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    x, target = torch.randn(2, size, LENGTH, WIDTH, generator=generator, dtype=torch.float64)
    return {"x": x, "target": target}


def penalty(model: Energy, x: Tensor, target: Tensor) -> Tensor:
    """Gulrajani et al., "Improved training of Wasserstein GANs" (2017)."""
    between = (0.5 * x + 0.5 * target).requires_grad_()
    energy = model.of(between)
    (slope,) = torch.autograd.grad(energy, between, torch.ones_like(energy), create_graph=True, retain_graph=True)
    return model.of(x).mean() - model.of(target).mean() + (slope.flatten(1).norm(dim=1) - 1).pow(2).mean()


def forces(model: Energy, x: Tensor, target: Tensor) -> Tensor:
    x.requires_grad_(True)
    energy = model.of(x)
    return F.mse_loss(-torch.autograd.grad(energy.sum(), x, create_graph=True)[0], target) + energy.pow(2).mean()


def equation(model: Energy, x: Tensor, target: Tensor) -> Tensor:
    """Of the second order, as in Raissi, Perdikaris and Karniadakis, "Physics-informed neural networks" (2019)."""
    x = x.clone().detach().requires_grad_(True)
    u = torch.sin(model.of(x))
    slope = torch.autograd.grad(u.sum(), x, create_graph=True)[0]
    curvature = torch.autograd.grad(slope[..., 0].sum(), x, create_graph=True)[0]
    return (u + slope.pow(2).sum((1, 2)) - curvature[..., 0].sum(1) - target[:, 0, 0]).pow(2).mean()


def step_of_a_learner(model: Energy, x: Tensor, target: Tensor) -> Tensor:
    """Finn, Abbeel and Levine, "Model-agnostic meta-learning" (2017)."""
    weights: dict[str, Tensor] = dict(model.inner.named_parameters())

    def loss(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        return model.outer(torch.func.functional_call(model.inner, weights, (x,)).tanh()).pow(2).mean()

    slopes = torch.autograd.grad(loss(weights, x), list(weights.values()), create_graph=True)
    moved = {name: weight - 0.1 * slope for (name, weight), slope in zip(weights.items(), slopes, strict=True)}
    return loss(moved, target)


def attack(model: Energy, x: Tensor, target: Tensor) -> Tensor:
    """Goodfellow, Shlens and Szegedy, "Explaining and harnessing adversarial examples" (2015)."""
    shift = torch.zeros_like(x, requires_grad=True)
    found = F.cross_entropy(model.inner(x + shift).flatten(0, 1), target.argmax(-1).flatten())
    (slope,) = torch.autograd.grad(found, shift)
    return F.cross_entropy(model.inner(x + 0.1 * slope.sign()).flatten(0, 1), target.argmax(-1).flatten())


def walk(model: Energy, x: Tensor, target: Tensor) -> Tensor:
    """An energy-based model, whose samples go downhill."""
    found = x
    for _ in range(2):
        found = found.detach().requires_grad_(True)
        found = found - 0.1 * torch.autograd.grad(model.of(found).sum(), found)[0]
    return model.of(target).mean() - model.of(found.detach()).mean()


def of_two(model: Energy, x: Tensor, target: Tensor) -> Tensor:
    """By two tensors, one of which depends on the other, past what is detached."""
    x.requires_grad_()
    h = model.inner(x).tanh()
    energy = model.outer(h * h.detach().sin()) + x.sum(-1, keepdim=True).pow(2)
    by_x, by_h = torch.autograd.grad(energy.sum(), [x, h], create_graph=True)
    return by_x.pow(2).mean() + (by_h * h).mean()


def attended(model: Energy, x: Tensor, target: Tensor) -> Tensor:
    x.requires_grad_()
    q, k = model.inner(x).chunk(2, -1)
    energy = F.scaled_dot_product_attention(q, k, target).square().mean((1, 2))
    (slope,) = torch.autograd.grad(energy.sum(), x, retain_graph=True)
    return (energy[:, None, None] * slope).mean() + energy.mean()


class Windows(nn.Module):
    """What a layer makes of windows of the sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow = nn.Conv1d(2 * WIDTH, 2 * WIDTH, 3, stride=2, padding=1, groups=2)
        self.wide = nn.ConvTranspose1d(2 * WIDTH, 2 * WIDTH, 2, stride=2)
        self.norm = nn.GroupNorm(2, 2 * WIDTH)

    def forward(self, h: Tensor) -> Tensor:
        return self.norm(self.wide(self.narrow(h.transpose(1, 2)).tanh())).transpose(1, 2)


class Bounded(nn.Module):
    """Of which torch writes the gradient in place."""

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1).clamp(-0.5, 0.5)


DERIVATIVES: dict[str, Callable[[], Energy]] = {
    "penalty": lambda: Energy(penalty, nn.LayerNorm(2 * WIDTH)),
    "penalty-rms": lambda: Energy(penalty, nn.RMSNorm(2 * WIDTH)),
    "penalty-windows": lambda: Energy(penalty, Windows()),
    "penalty-bounded": lambda: Energy(penalty, Bounded()),
    "forces": lambda: Energy(forces),
    "equation": lambda: Energy(equation),
    "step": lambda: Energy(step_of_a_learner),
    "attack": lambda: Energy(attack),
    "walk": lambda: Energy(walk),
    "two": lambda: Energy(of_two),
    "attended": lambda: Energy(attended),
}
"""A model by the name of what it takes gradients for."""
