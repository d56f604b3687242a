"""Models whose forward writes into their own state, in blocks of two layers each."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, spectral_norm

from tests.models import ResidualNet

WIDTH, LENGTH = 8, 4
Batch = dict[str, Tensor]


def batch_of(size: int, seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size, LENGTH, WIDTH, generator=generator, dtype=torch.float64)
    return {"x": x, "y": torch.randint(0, WIDTH, (size,), generator=generator)}


class Block(nn.Module):
    """Two matrices about what a subclass does in `between`, which is where it writes."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def between(self, h: Tensor) -> Tensor:
        return h

    def forward(self, x: Tensor) -> Tensor:
        return x + self.outer(self.between(self.inner(x)).tanh())


class Blocks(nn.Module):
    def __init__(self, block: Callable[[], nn.Module], depth: int = 2) -> None:
        super().__init__()
        self.blocks, self.head = nn.ModuleList(block() for _ in range(depth)), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return F.cross_entropy(self.head(x.mean(1)), y)


class Counts(Block):
    """Counts in whole numbers, in floats, and steps; into a slice; in a buffer that is no lasting state."""

    seen: Tensor
    loads: Tensor
    steps: Tensor
    marks: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(2 * WIDTH, dtype=torch.long))
        self.register_buffer("loads", torch.zeros(2 * WIDTH))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.register_buffer("marks", torch.zeros(3), persistent=False)

    def between(self, h: Tensor) -> Tensor:
        with torch.no_grad():
            self.seen += (h > 0).sum((0, 1))
            self.loads.add_(F.one_hot(h.argmax(-1), 2 * WIDTH).to(h.dtype).sum((0, 1)))
            self.steps += 1
        marked = h * (1 + 0.1 * self.steps) + self.marks.sum() * 0.01
        with torch.no_grad():
            self.marks[1] += h[:, 0, 0].sum()
        return marked


class ReadsWhatItWrites(Block):
    """The loss depends on what the step before has left, in a buffer that is no lasting state."""

    last: Tensor
    ones: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("last", torch.ones(2 * WIDTH), persistent=False)
        self.register_buffer("ones", torch.ones(2 * WIDTH, dtype=torch.bool))

    def between(self, h: Tensor) -> Tensor:
        scaled = h * self.last.masked_fill(self.ones, 0.5) + self.last
        self.last = self.last * 0.5 + h.detach().mean((0, 1))
        self.ones = ~self.ones
        return scaled


class MovingAverage(Block):
    """Takes off the mean of the steps before, and assigns the new one."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.full((2 * WIDTH,), 0.1))

    def between(self, h: Tensor) -> Tensor:
        centred = h - self.mean
        self.mean = self.mean.lerp(h.detach().mean((0, 1)), 0.1)
        return centred


class Teacher(Block):
    """A slow copy of its own weights, in parameters that are not trained; forward uses the new one."""

    def __init__(self) -> None:
        super().__init__()
        self.slow = nn.Linear(WIDTH, 2 * WIDTH).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            for slow, fast in zip(self.slow.parameters(), self.inner.parameters(), strict=True):
                slow.mul_(0.9).add_(fast, alpha=0.1)
        return x + self.outer((self.inner(x) + self.slow(x)).tanh())


class Spectral(Block):
    """Both ways that torch has to divide a matrix by its norm."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = parametrizations.spectral_norm(self.inner), spectral_norm(self.outer)


class Balanced(nn.Module):
    """Experts whose bias grows where few samples go: a sign of a sum over the whole batch."""

    bias: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.register_buffer("bias", torch.zeros(2 * WIDTH))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        scores = self.inner(x)
        chosen = F.one_hot((scores + self.bias).argmax(-1), 2 * WIDTH).to(x.dtype)
        with torch.no_grad():
            load = chosen.sum((0, 1))
            self.bias += 0.1 * torch.sign(load.mean() - load)
        return F.cross_entropy(self.outer(chosen * scores).mean(1), y)


class Compared(nn.Module):
    """Blocks of which each counts, and a bias that follows from the counts of all: a sum of more than one layer."""

    bias: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.head = nn.ModuleList(Block() for _ in range(2)), nn.Linear(WIDTH, WIDTH)
        self.register_buffer("bias", torch.zeros(WIDTH))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x, loads = x + self.bias, []
        for block in self.blocks:
            x = block(x)
            loads.append((x > 0).sum((0, 1)))
        with torch.no_grad():
            first, second = loads
            self.bias += 0.1 * torch.sign(first - second) / torch.ones_like(y).sum()
        return F.cross_entropy(self.head(x.mean(1)), y)


class Shares(nn.Module):
    """A bias that follows from means over all samples, in shares of how many of them a batch says to count."""

    bias: Tensor
    share: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.register_buffer("bias", torch.zeros(2 * WIDTH))
        self.register_buffer("share", torch.zeros(2 * WIDTH))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        hidden = self.inner(x) + self.bias - self.share
        with torch.no_grad():
            mean = (hidden > 0).to(x.dtype).mean((0, 1))
            self.bias.add_(torch.tanh(mean.mean() - mean), alpha=0.1)
            counted = (y < WIDTH // 2).sum()
            seen = (hidden > 0).sum((0, 1)).to(x.dtype)
            self.share.copy_((seen / (counted + 1)).sqrt() * 0.1)
        return F.cross_entropy(self.outer(hidden.relu()).mean(1), y)


class Shown(Block):
    """Keeps a row of a weight, as it was, for whoever looks at the model after the step."""

    shown: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shown", torch.zeros(WIDTH))

    def between(self, h: Tensor) -> Tensor:
        with torch.no_grad():
            self.shown.copy_(self.inner.weight[1])
        return h


class Codebook(Block):
    """Vectors that follow the mean of what is nearest to them, as in VQ-VAE."""

    codes: Tensor
    sizes: Tensor
    sums: Tensor

    def __init__(self) -> None:
        super().__init__()
        codes = torch.randn(5, 2 * WIDTH)
        for name, value in (("codes", codes), ("sizes", torch.ones(5)), ("sums", codes.clone())):
            self.register_buffer(name, value)

    def between(self, h: Tensor) -> Tensor:
        flat = h.reshape(-1, 2 * WIDTH)
        distances = self.codes.square().sum(-1) - 2 * flat @ self.codes.T
        nearest = F.one_hot(distances.argmin(-1), 5).to(h.dtype)
        found = (nearest @ self.codes).view_as(h)
        with torch.no_grad():
            self.sizes.mul_(0.9).add_(nearest.sum(0), alpha=0.1)
            self.sums.mul_(0.9).add_(nearest.T @ flat, alpha=0.1)
            self.codes.copy_(self.sums / (self.sizes + 1e-5)[:, None])
        return h + (found - h).detach()


class Warmed(nn.Module):
    """A counter of the model itself, by a name that stages have a use for."""

    step: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("step", torch.zeros((), dtype=torch.long))
        self.blocks = nn.ModuleList(Block() for _ in range(2))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        self.step += 1
        for block in self.blocks:
            x = block(x)
        return F.cross_entropy(x.mean(1) * (4 + self.step), y)


class Normed(Block):
    """Batch norm over the hidden units, and one without affine parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.plain = nn.BatchNorm1d(2 * WIDTH), nn.BatchNorm1d(2 * WIDTH, momentum=0.3, affine=False)

    def between(self, h: Tensor) -> Tensor:
        return self.plain(F.gelu(self.norm(h.transpose(1, 2)))).transpose(1, 2)


def images_of(size: int, seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(size, 3, 8, 8, generator=generator, dtype=torch.float64)
    return {"images": images, "y": torch.randint(0, WIDTH, (size,), generator=generator)}


STATES: dict[str, Callable[[], nn.Module]] = {
    "counts": lambda: Blocks(Counts),
    "reads": lambda: Blocks(ReadsWhatItWrites),
    "average": lambda: Blocks(MovingAverage),
    "teacher": lambda: Blocks(Teacher),
    "spectral": lambda: Blocks(Spectral),
    "balanced": Balanced,
    "warmed": Warmed,
    "compared": Compared,
    "shares": Shares,
    "codebook": lambda: Blocks(Codebook),
    "shown": lambda: Blocks(Shown),
    "batch-norm": lambda: Blocks(Normed),
    "residual": ResidualNet,
}
