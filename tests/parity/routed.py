"""Routers and layers of experts as people write them, in a small model with two such layers."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, EXPERTS, CHOSEN, TOKENS, VOCABULARY = 8, 4, 2, 4, 40
CAPACITY = 2
"""Rows that an expert takes of a sample, or of 16 samples' first tokens."""


class Layer(nn.Module):
    """Softmax of a linear router, the greatest two of it, and a product for each row with the matrices it chooses."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, EXPERTS, bias=False)
        self.up = nn.Parameter(torch.randn(EXPERTS, 2 * WIDTH, WIDTH) / 3)
        self.down = nn.Parameter(torch.randn(EXPERTS, WIDTH, 2 * WIDTH) / 3)

    def routed(self, rows: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The weights and the ids of each row's experts."""
        return self.router(rows).softmax(-1).topk(CHOSEN)

    def experts(self, rows: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
        chosen = ids.flatten()
        repeated = rows.repeat_interleave(ids.shape[1], 0).unsqueeze(-1)
        made = self.down[chosen] @ F.silu(self.up[chosen] @ repeated)
        return (made.squeeze(-1) * weights.reshape(-1, 1)).reshape(*ids.shape, WIDTH).sum(1)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        rows = x.reshape(-1, WIDTH)
        weights, ids = self.routed(rows, tokens)
        return x + self.experts(rows, weights, ids).reshape(x.shape)


class Loop(Layer):
    """A loop over all experts, each with the rows that have chosen it."""

    def experts(self, rows: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
        found = torch.zeros_like(rows)
        for expert in range(EXPERTS):
            row, choice = torch.where(ids == expert)
            made = F.linear(F.silu(F.linear(rows[row], self.up[expert])), self.down[expert])
            found.index_add_(0, row, made * weights[row, choice, None])
        return found


class Hash(Layer):
    """An expert for each token of the vocabulary, by a remainder."""

    def routed(self, rows: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        ids = (tokens.reshape(-1, 1) * 7) % EXPERTS
        return self.router(rows).sigmoid().gather(1, ids), ids


class Noisy(Layer):
    """Noise for each score in training, of a size that is learned."""

    def __init__(self) -> None:
        super().__init__()
        self.size = nn.Parameter(torch.zeros(EXPERTS))

    def routed(self, rows: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.router(rows)
        return (scores + torch.randn_like(scores) * self.size.detach()).softmax(-1).topk(CHOSEN)


class Counting(Layer):
    """Counts the rows of each expert, for whoever balances them between steps."""

    counts: Tensor
    bias: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("counts", torch.zeros(EXPERTS))
        self.register_buffer("bias", torch.tensor([0.1, 0.0, -0.1, 0.05]))

    def routed(self, rows: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.router(rows).sigmoid()
        ids = (scores + self.bias).topk(CHOSEN).indices
        with torch.no_grad():
            self.counts.add_(self.counted(ids).to(self.counts.dtype))
        return scores.gather(1, ids), ids

    def counted(self, ids: Tensor) -> Tensor:
        return F.one_hot(ids, EXPERTS).sum((0, 1))


class CountingBins(Counting):
    def counted(self, ids: Tensor) -> Tensor:
        return torch.histc(ids.flatten().float(), bins=EXPERTS, min=0, max=EXPERTS - 1)


class CountingIds(Counting):
    def counted(self, ids: Tensor) -> Tensor:
        return torch.bincount(ids.flatten(), minlength=EXPERTS)


class CountingPlaces(Counting):
    def counted(self, ids: Tensor) -> Tensor:
        ones = torch.ones_like(ids.flatten(), dtype=self.counts.dtype)
        return torch.zeros_like(self.counts).scatter_add(0, ids.flatten(), ones)


class Balancing(Counting):
    """Without a loss for it: the bias of an expert grows where few rows go."""

    def routed(self, rows: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        weights, ids = super().routed(rows, tokens)
        with torch.no_grad():
            load = self.counted(ids).to(self.bias.dtype)
            self.bias.add_(0.05 * torch.sign(load.mean() - load))
        return weights, ids


class Capacity(Layer):
    """Each expert takes the first rows of a sample that choose it, as many as it has places; others are dropped."""

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        return x + self.placed(x)

    def placed(self, groups: Tensor) -> Tensor:
        """Of groups of rows, each of which has places of its own."""
        weights, ids = self.router(groups).softmax(-1).max(-1)
        chosen = F.one_hot(ids, EXPERTS)
        place = chosen.cumsum(1) * chosen - 1
        places = F.one_hot(place.clamp(min=0), groups.shape[1])[..., :CAPACITY] * chosen.unsqueeze(-1)
        sent = places.to(groups.dtype)
        there = torch.einsum("gtec,gtd->egcd", sent, groups)
        made = torch.einsum("egcd,efd->egcf", there, self.up)
        made = torch.einsum("egcf,edf->egcd", F.silu(made), self.down)
        return torch.einsum("gtec,egcd->gtd", sent * weights[..., None, None], made)


class CapacityOfBatch(Capacity):
    """Places are those of the first tokens of the whole batch, so that who is dropped depends on other samples."""

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        first = x[:, 0]
        weights, ids = self.router(first).softmax(-1).max(-1)
        chosen = F.one_hot(ids, EXPERTS)
        place = chosen.cumsum(0) * chosen
        kept = ((place > 0) & (place <= CAPACITY)).any(-1).to(x.dtype)
        made = self.experts(first, (weights * kept).unsqueeze(-1), ids.unsqueeze(-1))
        return x + made.unsqueeze(1)


class Model(nn.Module):
    """Two layers with experts between an embedding and a linear head; `router_loss` is that of the last scores."""

    def __init__(self, layer: Callable[[], Layer], router_loss: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.layers = nn.ModuleList(layer() for _ in range(2))
        self.router_loss = router_loss

    def forward(self, tokens: Tensor, target: Tensor) -> Tensor:
        x, added = self.embedding(tokens), 0.0
        for layer in self.layers:
            assert isinstance(layer, Layer)
            if self.router_loss is not None:
                added = added + self.router_loss(layer.router(x))
            x = layer(x, tokens)
        return F.mse_loss(self.head(x), target) + added


def of_normaliser(scores: Tensor) -> Tensor:
    """Router z-loss (Zoph et al. 2022)."""
    return 0.1 * scores.logsumexp(-1).square().mean()


def of_balance(scores: Tensor) -> Tensor:
    """Load balancing loss (Fedus et al. 2021): the share of rows of each expert times its mean probability."""
    shares = F.one_hot(scores.argmax(-1), EXPERTS).to(scores.dtype).mean((0, 1))
    return 0.1 * EXPERTS * (shares * scores.softmax(-1).mean((0, 1))).sum()


ROUTED: dict[str, Callable[[], nn.Module]] = {
    "top two": lambda: Model(Layer),
    "loop": lambda: Model(Loop),
    "hash": lambda: Model(Hash),
    "noisy": lambda: Model(Noisy),
    "z-loss": lambda: Model(Layer, of_normaliser),
    "balance loss": lambda: Model(Layer, of_balance),
    "counting": lambda: Model(Counting),
    "counting bins": lambda: Model(CountingBins),
    "counting ids": lambda: Model(CountingIds),
    "counting places": lambda: Model(CountingPlaces),
    "balancing": lambda: Model(Balancing),
    "capacity": lambda: Model(Capacity),
    "capacity of a batch": lambda: Model(CapacityOfBatch),
}


def batch(size: int, seed: int) -> dict[str, Tensor]:
    draws = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, VOCABULARY, (size, TOKENS), generator=draws)
    return {"tokens": tokens, "target": torch.randn(size, TOKENS, WIDTH, generator=draws, dtype=torch.float64)}
