"""Small models built as well-known ones are: pictures in windows, residual convolutions, recommendation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from tests.models import Case


class WindowBlock(nn.Module):
    """Attention in windows of a picture, shifted in every second block, with a trained bias for each pair of places.

    As in Swin: the windows of a shifted block have masks of their own, so that its attention is written out.
    """

    places: torch.Tensor
    hidden: torch.Tensor

    def __init__(self, width: int, size: int, window: int, shift: int) -> None:
        super().__init__()
        self.window, self.shift, self.heads = window, shift, 2
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.table = nn.Parameter(torch.randn((2 * window - 1) ** 2, self.heads) * 0.1)
        rows, columns = torch.arange(window**2) // window, torch.arange(window**2) % window
        steps = [x[:, None] - x[None, :] + window - 1 for x in (rows, columns)]
        self.register_buffer("places", steps[0] * (2 * window - 1) + steps[1])
        side = torch.bucketize(torch.arange(size), torch.tensor([size - window, size - shift]), right=True)
        region = (3 * side[:, None] + side[None, :])[None, :, :, None]
        parts = self._windows(region).squeeze(-1)
        self.register_buffer("hidden", -100.0 * (parts[:, None] != parts[:, :, None]))

    def _windows(self, x: torch.Tensor) -> torch.Tensor:
        count, height, width, channels = x.shape
        k = self.window
        return x.view(count, height // k, k, width // k, k, channels).transpose(2, 3).reshape(-1, k * k, channels)

    def _attention(self, x: torch.Tensor) -> torch.Tensor:
        count, height, width, channels = x.shape
        k = self.window
        if self.shift:
            x = torch.roll(x, (-self.shift, -self.shift), (1, 2))
        x = self._windows(x)
        query, key, value = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        bias = self.table[self.places].permute(2, 0, 1)[None]
        if self.shift:
            scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5 + bias
            scores = scores.unflatten(0, (count, -1)) + self.hidden[None, :, None]
            x = scores.flatten(0, 1).softmax(-1) @ value
        else:
            x = F.scaled_dot_product_attention(query, key, value, bias)
        x = self.proj(x.transpose(1, 2).flatten(2))
        x = x.view(count, height // k, width // k, k, k, channels).transpose(2, 3).reshape(count, height, width, -1)
        return torch.roll(x, (self.shift, self.shift), (1, 2)) if self.shift else x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self._attention(self.norm1(x))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Merge(nn.Module):
    """Four neighbouring places become one of twice the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.reduction = nn.LayerNorm(4 * width), nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.cat([x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)], -1)
        return self.reduction(self.norm(x))


class WindowNet(nn.Module):
    """Stages of two blocks, each at half the resolution and twice the width of the one before, as in Swin."""

    def __init__(self, stages: int, width: int = 8, size: int = 16, window: int = 2) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, 2, 2)
        parts: list[nn.Module] = []
        for stage in range(stages):
            size //= 2
            if stage:
                parts.append(Merge(width))
                width *= 2
            parts.append(nn.Sequential(*(WindowBlock(width, size, window, shift) for shift in (0, window // 2))))
        self.features = nn.Sequential(*parts)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        x = self.features(self.patch(x).permute(0, 2, 3, 1))
        return F.cross_entropy(self.head(self.norm(x).mean((1, 2))), y)


class Residual(nn.Module):
    """Two convolutions beside a shortcut; the first block of a stage halves the resolution."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(before, width, 3, stride, 1, bias=False), nn.GroupNorm(2, width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.GroupNorm(2, width)
        self.shortcut = nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), nn.GroupNorm(2, width))
        if stride == 1:
            self.shortcut = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))
        return torch.relu(y + self.shortcut(x))


class ResidualNet(nn.Module):
    """Stages of residual blocks, as in ResNet, with a norm over each sample."""

    def __init__(self, depths: Sequence[int], width: int = 4) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, width, 3, 2, 1, bias=False), nn.GroupNorm(2, width)
        self.names = [f"layer{stage + 1}" for stage in range(len(depths))]
        for stage, (name, depth) in enumerate(zip(self.names, depths, strict=True)):
            own = [(width * 2**stage, 1)] * depth
            before = width * 2 ** (stage - 1) if stage else width
            first = Residual(before, width * 2**stage, 2 if stage else 1)
            self.add_module(name, nn.Sequential(first, *(Residual(size, size, stride) for size, stride in own[1:])))
        self.fc = nn.Linear(width * 2 ** (len(depths) - 1), 10)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.conv(x)))
        for name in self.names:
            x = self.get_submodule(name)(x)
        return F.cross_entropy(self.fc(x.mean((2, 3))), y)


class Recommendation(nn.Module):
    """Numbers and categories, and what they have to do with each other, as in DLRM."""

    pairs: torch.Tensor

    def __init__(self, tables: int, width: int = 8) -> None:
        super().__init__()
        self.bottom = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, width), nn.ReLU())
        self.tables = nn.ModuleList(nn.Embedding(20, width) for _ in range(tables))
        pairs = (tables + 1) * tables // 2
        self.top = nn.Sequential(nn.Linear(width + pairs, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 1))
        self.register_buffer("pairs", torch.tril_indices(tables + 1, tables + 1, -1))

    def forward(self, x: torch.Tensor, kinds: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        x = self.bottom(x)
        every = torch.stack([x, *(table(kinds[:, i]) for i, table in enumerate(self.tables))], 1)
        products = (every @ every.transpose(1, 2))[:, self.pairs[0], self.pairs[1]]
        return F.binary_cross_entropy_with_logits(self.top(torch.cat([x, products], 1)).squeeze(-1), y)


def _batch(shapes: dict[str, tuple[int, ...]], whole: dict[str, int], size: int, seed: int) -> dict[str, Any]:
    """Random inputs of some shapes; those that are `whole` numbers are less than what stands there."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randint(whole[name], (size, *shape), generator=generator)
        if name in whole
        else torch.rand(size, *shape, generator=generator, dtype=torch.float64)
        for name, shape in shapes.items()
    }


def _case(make: Callable[[], nn.Module], shapes: dict[str, tuple[int, ...]], whole: dict[str, int]) -> Case:
    torch.manual_seed(0)
    return Case(make().double(), partial(_batch, shapes, whole))


def windows(stages: int) -> Case:
    return _case(lambda: WindowNet(stages), {"x": (3, 16, 16), "y": ()}, {"y": 10})


def convolutions(*depths: int) -> Case:
    return _case(lambda: ResidualNet(depths), {"x": (3, 16, 16), "y": ()}, {"y": 10})


def recommendation(tables: int) -> Case:
    return _case(lambda: Recommendation(tables), {"x": (5,), "kinds": (tables,), "y": ()}, {"kinds": 20})
