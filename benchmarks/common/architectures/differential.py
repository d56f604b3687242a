"""Models whose forward takes gradients itself, and networks whose weights are made for each sample."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.architectures.base import Architecture, Subject, batches, floats, integers, uniform
from common.architectures.recommendation import perceptron


class Critic(nn.Module):
    """Gulrajani et al., "Improved training of Wasserstein GANs" (2017)."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, width, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, width, 3, stride=2),
            nn.GroupNorm(2, width),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(width, 1),
        )

    def forward(self, real: Tensor, fake: Tensor, share: Tensor) -> Tensor:
        between = (share * real + (1 - share) * fake).requires_grad_(True)
        scores = self.layers(between)
        (slope,) = torch.autograd.grad(scores, between, torch.ones_like(scores), create_graph=True)
        penalty = (slope.flatten(1).norm(dim=1) - 1).square().mean()
        return self.layers(fake).mean() - self.layers(real).mean() + 10 * penalty


class PhysicsInformed(nn.Module):
    """Raissi, Perdikaris and Karniadakis, "Physics-informed neural networks" (2019): the equation of Burgers, with its
    viscosity to be found."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh())
        self.head = nn.Linear(width, 1)
        self.viscosity = nn.Parameter(torch.tensor(0.1))

    def solution(self, x: Tensor, t: Tensor) -> Tensor:
        return self.head(self.layers(torch.cat([x, t], 1)))

    def forward(self, x: Tensor, t: Tensor, beginning: Tensor) -> Tensor:
        x.requires_grad_(True)
        t.requires_grad_(True)
        u = self.solution(x, t)
        of_x, of_t = torch.autograd.grad(u.sum(), [x, t], create_graph=True)
        (curvature,) = torch.autograd.grad(of_x.sum(), x, create_graph=True)
        residual = of_t + u * of_x - self.viscosity * curvature
        return residual.square().mean() + F.mse_loss(self.solution(x, torch.zeros_like(t)), beginning)


class Siren(nn.Module):
    """Sitzmann et al., "Implicit neural representations with periodic activation functions" (2020), on slopes."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(2, width), nn.Linear(width, width)])
        self.head = nn.Linear(width, 1)

    def forward(self, place: Tensor, slope: Tensor) -> Tensor:
        place = h = place.clone().detach().requires_grad_(True)
        for layer in self.layers:
            h = torch.sin(30 * layer(h))
        (found,) = torch.autograd.grad(self.head(h).sum(), place, create_graph=True)
        return (found - slope).square().sum(-1).mean()


class MetaLearner(nn.Module):
    """Finn, Abbeel and Levine, "Model-agnostic meta-learning for fast adaptation of deep networks" (2017)."""

    def __init__(self, steps: int = 2) -> None:
        super().__init__()
        self.steps = steps
        self.layers = perceptron(4, 8, 1)

    def loss(self, weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(torch.func.functional_call(self.layers, weights, (x,)), y)

    def forward(self, x: Tensor, y: Tensor, later_x: Tensor, later_y: Tensor) -> Tensor:
        weights: dict[str, Tensor] = dict(self.layers.named_parameters())
        for _ in range(self.steps):
            slopes = torch.autograd.grad(self.loss(weights, x, y), list(weights.values()), create_graph=True)
            weights = {
                name: weight - 0.1 * slope for (name, weight), slope in zip(weights.items(), slopes, strict=True)
            }
        return self.loss(weights, later_x, later_y)


class Potential(nn.Module):
    """An energy of atoms and their forces, as in Schütt et al., "SchNet" (2017)."""

    def __init__(self, width: int = 8, kinds: int = 5) -> None:
        super().__init__()
        self.kinds = nn.Embedding(kinds, width)
        self.pair = nn.Sequential(nn.Linear(2 * width + 1, 16), nn.SiLU(), nn.Linear(16, 1))

    def forward(self, kind: Tensor, place: Tensor, energy: Tensor, force: Tensor) -> Tensor:
        place.requires_grad_(True)
        h, atoms = self.kinds(kind), kind.shape[1]
        distance = ((place[:, :, None] - place[:, None]).square().sum(-1, keepdim=True) + 1e-3).sqrt()
        both = [h[:, :, None].expand(-1, -1, atoms, -1), h[:, None].expand(-1, atoms, -1, -1), distance]
        others = 1 - torch.eye(atoms, dtype=place.dtype, device=place.device)
        found = (self.pair(torch.cat(both, -1))[..., 0] * others).sum((1, 2))
        (slope,) = torch.autograd.grad(found.sum(), place, create_graph=True)
        return F.mse_loss(found, energy) + 10 * F.mse_loss(-slope, force)


class Hamiltonian(nn.Module):
    """Greydanus, Dzamba and Yosinski, "Hamiltonian neural networks" (2019)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 1))

    def forward(self, state: Tensor, change: Tensor) -> Tensor:
        state = state.requires_grad_()
        (slope,) = torch.autograd.grad(self.layers(state).sum(), state, create_graph=True)
        of_place, of_momentum = slope.chunk(2, -1)
        return F.mse_loss(torch.cat([of_momentum, -of_place], -1), change)


class EnergyBased(nn.Module):
    """Du and Mordatch, "Implicit generation and modeling with energy based models" (2019): samples go downhill."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 16), nn.LayerNorm(16), nn.ELU(), nn.Linear(16, 1))

    def forward(self, x: Tensor, start: Tensor, noise: Tensor) -> Tensor:
        found = start
        for step in noise.unbind(1):
            found = found.detach().requires_grad_(True)
            found = found - 0.1 * torch.autograd.grad(self.layers(found).sum(), found)[0] + 0.01 * step
        good, bad = self.layers(x), self.layers(found.detach())
        return good.mean() - bad.mean() + 0.1 * (good.square() + bad.square()).mean()


class Modulated(nn.Module):
    """Karras et al., "Analyzing and improving the image quality of StyleGAN" (2020): a style scales the kernel."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.constant = nn.Parameter(torch.randn(1, width, 4, 4))
        self.mapping = nn.Sequential(nn.Linear(width, width), nn.LeakyReLU(0.2), nn.Linear(width, width))
        self.styles = nn.ModuleList([nn.Linear(width, width), nn.Linear(width, width)])
        self.kernels = nn.ParameterList([torch.randn(1, after, width, 3, 3) / 8 for after in (width, 3)])

    def forward(self, latent: Tensor, real: Tensor) -> Tensor:
        size = latent.shape[0]
        latent = self.mapping(latent * latent.square().mean(1, keepdim=True).add(1e-8).rsqrt())
        x = F.interpolate(self.constant.repeat(size, 1, 1, 1), scale_factor=2, mode="nearest")
        for style, kernel in zip(self.styles, self.kernels, strict=True):
            kernel = kernel * style(latent)[:, None, :, None, None]
            kernel = kernel * kernel.square().sum((2, 3, 4), keepdim=True).add(1e-8).rsqrt()
            x = F.conv2d(x.reshape(1, -1, *x.shape[2:]), kernel.flatten(0, 1), padding=1, groups=size)
            x = F.leaky_relu(x.view(size, -1, *x.shape[2:]), 0.2)
        return F.l1_loss(x, real)


class Conditional(nn.Module):
    """Yang et al., "CondConv: conditionally parameterized convolutions" (2019)."""

    def __init__(self, experts: int = 3, width: int = 6) -> None:
        super().__init__()
        self.routing = nn.Linear(4, experts)
        self.kernels = nn.Parameter(torch.randn(experts, width, 4, 3, 3) / 6)
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        size, channels, *space = x.shape
        kernels = (self.routing(x.mean((2, 3))).sigmoid() @ self.kernels.flatten(1)).view(-1, *self.kernels.shape[2:])
        h = F.conv2d(x.reshape(1, size * channels, *space), kernels, padding=1, groups=size).view(size, -1, *space)
        return F.cross_entropy(self.head(h.relu().mean((2, 3))), y)


_IMAGE = floats(3, 8, 8)
_TASK = {"x": floats(6, 4), "y": floats(6, 1), "later_x": floats(6, 4), "later_y": floats(6, 1)}

_TABLE: dict[str, Callable[[], Subject]] = {
    "WGAN-GP": lambda: Subject(Critic(), batches(real=_IMAGE, fake=_IMAGE, share=uniform(1, 1, 1))),
    "PINN": lambda: Subject(PhysicsInformed(), batches(x=uniform(1), t=uniform(1), beginning=floats(1))),
    "SIREN": lambda: Subject(Siren(), batches(place=floats(2), slope=floats(2))),
    "MAML": lambda: Subject(MetaLearner(), batches(**_TASK)),
    "forces of a potential": lambda: Subject(
        Potential(), batches(kind=integers(5, 6), place=floats(6, 3), energy=floats(), force=floats(6, 3))
    ),
    "Hamiltonian network": lambda: Subject(Hamiltonian(), batches(state=floats(6), change=floats(6))),
    "energy-based model": lambda: Subject(EnergyBased(), batches(x=floats(4), start=floats(4), noise=floats(3, 4))),
    "StyleGAN-2": lambda: Subject(Modulated(), batches(latent=floats(8), real=_IMAGE)),
    "CondConv": lambda: Subject(Conditional(), batches(x=floats(4, 8, 8), y=integers(3))),
}

ROWS = tuple(Architecture(name, "differential", "torch", make) for name, make in _TABLE.items())
