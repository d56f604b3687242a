"""Loops over experts written by hand, whose turns are what they seem to be, or are not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, EXPERTS, CHOSEN, TOKENS = 8, 4, 2, 4

Turn = Callable[["Layer", Tensor, int], Tensor]
"""What an expert makes of rows."""


class Layer(nn.Module):
    """Experts in turns, all first choices of the tokens before all second ones."""

    def __init__(self, turn: Turn) -> None:
        super().__init__()
        self.turn = turn
        self.router = nn.Linear(WIDTH, EXPERTS, bias=False)
        self.up = nn.Parameter(torch.randn(EXPERTS, 2 * WIDTH, WIDTH) / 3)
        self.down = nn.Parameter(torch.randn(EXPERTS, WIDTH, 2 * WIDTH) / 3)
        self.shared = nn.Parameter(torch.randn(WIDTH, WIDTH) / 3)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, WIDTH)
        weights, ids = self.router(rows).softmax(-1).topk(CHOSEN)
        masks = F.one_hot(ids, EXPERTS).permute(2, 1, 0)
        chosen, factors = rows.repeat(CHOSEN, 1), weights.t().reshape(-1, 1)
        total = torch.zeros_like(chosen)
        for expert in range(EXPERTS):
            made = self.turn(self, chosen, expert) * factors
            total = total + torch.where(masks[expert].reshape(-1, 1) != 0, made, 0.0)
        return x + total.reshape(CHOSEN, -1, WIDTH).sum(0).reshape(x.shape)


class ByNumber(Layer):
    """Rows are in the turn of a number that need not be whole, so that most are in none."""

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, WIDTH)
        number = self.router(rows)[:, 0].clamp(0, EXPERTS - 1)
        total = torch.zeros_like(rows)
        for expert in range(EXPERTS):
            total = total + torch.where((number == expert).reshape(-1, 1), self.turn(self, rows, expert), 0.0)
        return x + total.reshape(x.shape)


class Listed(nn.Module):
    """Experts in a list, in a loop over those that some token has chosen: of four the last is never chosen, the third
    in few batches."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, EXPERTS)
        with torch.no_grad():
            self.router.weight.mul_(0.2)
            self.router.bias.copy_(torch.tensor([0.0, 0.1, -0.4, -100.0]))
        self.experts: Any = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(EXPERTS))

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, WIDTH)
        weights, ids = self.router(rows).softmax(-1).topk(CHOSEN)
        masks = F.one_hot(ids, EXPERTS).permute(2, 1, 0)
        found = torch.zeros_like(rows)
        for expert in torch.greater(masks.sum((-1, -2)), 0).nonzero():
            choice, row = torch.where(masks[expert].squeeze(0))
            made = self.experts[expert[0]](rows[row]) * weights[row, choice, None]
            found.index_add_(0, row, made)
        return x + found.reshape(x.shape)


def plain(layer: Layer, rows: Tensor, expert: int) -> Tensor:
    return F.linear(F.silu(F.linear(rows, layer.up[expert])), layer.down[expert])


def added_rows(layer: Layer, rows: Tensor, expert: int) -> Tensor:
    made = torch.addmm(torch.cat([rows, 2 * rows], 1), rows, layer.up[expert].t())
    return F.linear(made.tanh(), layer.down[expert])


def shared_basis(layer: Layer, rows: Tensor, expert: int) -> Tensor:
    return F.linear(F.silu(F.linear(rows, (layer.shared @ layer.up[expert].t()).t())), layer.down[expert])


def over_rows(layer: Layer, rows: Tensor, expert: int) -> Tensor:
    return F.linear(F.linear(rows, layer.up[expert]).cumsum(0).tanh(), layer.down[expert])


TURNS: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: Layer(plain),
    "added rows": lambda: Layer(added_rows),
    "shared basis": lambda: Layer(shared_basis),
    "over rows": lambda: Layer(over_rows),
    "by number": lambda: ByNumber(plain),
    "listed": Listed,
}


class Model(nn.Module):
    """Two layers with experts between linear ones."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.layers = nn.ModuleList(TURNS[name]() for _ in range(2))

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        x = self.first(x)
        for layer in self.layers:
            x = layer(x)
        return F.mse_loss(self.last(x), target)


def batch(size: int, seed: int) -> dict[str, Tensor]:
    draws = torch.Generator().manual_seed(seed)
    x, target = torch.randn(2, size, TOKENS, WIDTH, generator=draws, dtype=torch.float64)
    return {"x": x, "target": target}
