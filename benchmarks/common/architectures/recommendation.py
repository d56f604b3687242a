"""Models that rank what to recommend, written after their papers."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.architectures.base import Architecture, Subject, batches, floats, integers

FIELDS, ROWS_PER_FIELD, NUMBERS = 6, 20, 4
"""Categorical inputs, the values that each has, and dense inputs."""


def perceptron(*widths: int) -> nn.Sequential:
    """Linear layers with ReLU between them."""
    layers: list[nn.Module] = []
    for before, after in zip(widths, widths[1:], strict=False):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Clicks(nn.Module):
    """What the models of click-through rates share: a table per field, and the loss."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(ROWS_PER_FIELD, width) for _ in range(FIELDS))

    def embedded(self, fields: Tensor) -> Tensor:
        """f[samples, fields, width]."""
        return torch.stack([table(fields[:, i]) for i, table in enumerate(self.tables)], 1)

    def logits(self, numbers: Tensor, fields: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, numbers: Tensor, fields: Tensor, clicked: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(self.logits(numbers, fields), clicked)


class DLRM(Clicks):
    """Naumov et al., "Deep learning recommendation model for personalization and recommendation systems" (2019)."""

    def __init__(self, width: int = 8) -> None:
        super().__init__(width)
        self.bottom = perceptron(NUMBERS, 16, width)
        self.top = perceptron(width + (FIELDS + 1) * FIELDS // 2, 16, 8, 1)
        rows, columns = torch.tril_indices(FIELDS + 1, FIELDS + 1, -1)
        self.register_buffer("pairs", rows * (FIELDS + 1) + columns)

    def logits(self, numbers: Tensor, fields: Tensor) -> Tensor:
        dense = F.relu(self.bottom(numbers))
        vectors = torch.cat([dense[:, None], self.embedded(fields)], 1)
        products = (vectors @ vectors.transpose(1, 2)).flatten(1)[:, self.get_buffer("pairs")]
        return self.top(torch.cat([dense, products], 1))[:, 0]


class DeepFM(Clicks):
    """Guo et al., "DeepFM: a factorization-machine based neural network for CTR prediction" (2017)."""

    def __init__(self, width: int = 8) -> None:
        super().__init__(width)
        self.first = nn.ModuleList(nn.Embedding(ROWS_PER_FIELD, 1) for _ in range(FIELDS))
        self.dense = nn.Linear(NUMBERS, 1)
        self.deep = perceptron(FIELDS * width + NUMBERS, 32, 16, 1)

    def logits(self, numbers: Tensor, fields: Tensor) -> Tensor:
        vectors = self.embedded(fields)
        linear = sum((table(fields[:, i]) for i, table in enumerate(self.first)), self.dense(numbers))
        pairs = 0.5 * (vectors.sum(1).square() - vectors.square().sum(1)).sum(1, keepdim=True)
        return (linear + pairs + self.deep(torch.cat([vectors.flatten(1), numbers], 1)))[:, 0]


class WideAndDeep(Clicks):
    """Cheng et al., "Wide & deep learning for recommender systems" (2016)."""

    def __init__(self, width: int = 8) -> None:
        super().__init__(width)
        self.wide = nn.Embedding(ROWS_PER_FIELD * ROWS_PER_FIELD, 1)
        self.deep = perceptron(FIELDS * width + NUMBERS, 32, 16, 1)

    def logits(self, numbers: Tensor, fields: Tensor) -> Tensor:
        crossed = fields[:, :-1] * ROWS_PER_FIELD + fields[:, 1:]
        deep = self.deep(torch.cat([self.embedded(fields).flatten(1), numbers], 1))
        return (self.wide(crossed).sum(1) + deep)[:, 0]


class DCN(Clicks):
    """Wang et al., "DCN V2: improved deep & cross network" (2021)."""

    def __init__(self, width: int = 8) -> None:
        super().__init__(width)
        size = FIELDS * width + NUMBERS
        self.cross = nn.ModuleList(nn.Linear(size, size) for _ in range(3))
        self.deep = perceptron(size, 32, 16)
        self.head = nn.Linear(size + 16, 1)

    def logits(self, numbers: Tensor, fields: Tensor) -> Tensor:
        first = x = torch.cat([self.embedded(fields).flatten(1), numbers], 1)
        for layer in self.cross:
            x = first * layer(x) + x
        return self.head(torch.cat([x, F.relu(self.deep(first))], 1))[:, 0]


class XDeepFM(Clicks):
    """Lian et al., "xDeepFM: combining explicit and implicit feature interactions" (2018)."""

    def __init__(self, width: int = 8, maps: int = 4) -> None:
        super().__init__(width)
        self.compressed = nn.ModuleList(nn.Conv1d(FIELDS * k, maps, 1) for k in (FIELDS, maps))
        self.deep = perceptron(FIELDS * width + NUMBERS, 32, 16)
        self.head = nn.Linear(2 * maps + 16, 1)

    def logits(self, numbers: Tensor, fields: Tensor) -> Tensor:
        first = x = self.embedded(fields)
        pooled = []
        for layer in self.compressed:
            outer = torch.einsum("bhd,bmd->bhmd", x, first).flatten(1, 2)
            x = F.relu(layer(outer))
            pooled.append(x.sum(-1))
        deep = F.relu(self.deep(torch.cat([first.flatten(1), numbers], 1)))
        return self.head(torch.cat([*pooled, deep], 1))[:, 0]


class AutoInt(Clicks):
    """Song et al., "AutoInt: automatic feature interaction learning via self-attentive neural networks" (2019)."""

    def __init__(self, width: int = 8) -> None:
        super().__init__(width)
        self.attention = nn.ModuleList(nn.MultiheadAttention(width, 2, batch_first=True) for _ in range(2))
        self.residual = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.head = nn.Linear(FIELDS * width + NUMBERS, 1)

    def logits(self, numbers: Tensor, fields: Tensor) -> Tensor:
        x = self.embedded(fields)
        for attention, residual in zip(self.attention, self.residual, strict=True):
            x = F.relu(attention(x, x, x, need_weights=False)[0] + residual(x))
        return self.head(torch.cat([x.flatten(1), numbers], 1))[:, 0]


class NeuralCollaborativeFiltering(nn.Module):
    """He et al., "Neural collaborative filtering" (2017)."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.users, self.items, self.deep_users, self.deep_items = (nn.Embedding(50, width) for _ in range(4))
        self.deep = perceptron(2 * width, 16, 8)
        self.head = nn.Linear(width + 8, 1)

    def forward(self, user: Tensor, item: Tensor, clicked: Tensor) -> Tensor:
        product = self.users(user) * self.items(item)
        deep = self.deep(torch.cat([self.deep_users(user), self.deep_items(item)], -1))
        return F.binary_cross_entropy_with_logits(self.head(torch.cat([product, deep], -1))[:, 0], clicked)


class TwoTowers(nn.Module):
    """Retrieval against the other items of the batch: Yi et al., "Sampling-bias-corrected neural modeling" (2019)."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(50, width), nn.Embedding(50, width)
        self.user_tower, self.item_tower = perceptron(width, 16, width), perceptron(width, 16, width)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        users = F.normalize(self.user_tower(self.users(user)), dim=-1)
        items = F.normalize(self.item_tower(self.items(item)), dim=-1)
        scores = users @ items.T / 0.1
        return F.cross_entropy(scores, torch.arange(len(user), device=user.device))


class SASRec(nn.Module):
    """Kang and McAuley, "Self-attentive sequential recommendation" (2018)."""

    def __init__(self, width: int = 16, length: int = 12) -> None:
        super().__init__()
        self.items, self.positions = nn.Embedding(50, width, padding_idx=0), nn.Embedding(length, width)
        block = nn.TransformerEncoderLayer(width, 2, 2 * width, 0.0, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)

    def forward(self, history: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        length = history.shape[1]
        mask = torch.ones(length, length, dtype=torch.bool, device=history.device).triu(1)
        states = self.blocks(self.items(history) + self.positions.weight[:length], mask=mask)
        good, bad = ((states * self.items(items)).sum(-1) for items in (positive, negative))
        return -(F.logsigmoid(good) + F.logsigmoid(-bad)).mean()


class DIN(nn.Module):
    """Zhou et al., "Deep interest network for click-through rate prediction" (2018)."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.items = nn.Embedding(50, width, padding_idx=0)
        self.unit = nn.Sequential(nn.Linear(4 * width, 16), nn.PReLU(), nn.Linear(16, 1))
        self.head = nn.Sequential(nn.Linear(3 * width, 16), nn.PReLU(), nn.Linear(16, 1))

    def forward(self, history: Tensor, item: Tensor, clicked: Tensor) -> Tensor:
        seen, wanted = self.items(history), self.items(item)
        wide = wanted[:, None].expand_as(seen)
        weights = self.unit(torch.cat([seen, wide, seen - wide, seen * wide], -1)) * (history != 0)[..., None]
        interest = (weights * seen).sum(1)
        return F.binary_cross_entropy_with_logits(
            self.head(torch.cat([interest, wanted, interest * wanted], -1))[:, 0], clicked
        )


def _clicked(samples: int, generator: torch.Generator) -> Tensor:
    return torch.randint(0, 2, (samples,), generator=generator).double()


_CLICKS = batches(numbers=floats(NUMBERS), fields=integers(ROWS_PER_FIELD, FIELDS), clicked=_clicked)
_PAIRS = batches(user=integers(50), item=integers(50), clicked=_clicked)
_HISTORY = integers(50, 12)


def _row(name: str, make: Callable[[], Subject], sequence: bool = False) -> Architecture:
    return Architecture(name, "recommendation", "torch", make, sequence)


ROWS = (
    _row("DLRM", lambda: Subject(DLRM(), _CLICKS)),
    _row("DeepFM", lambda: Subject(DeepFM(), _CLICKS)),
    _row("Wide & Deep", lambda: Subject(WideAndDeep(), _CLICKS)),
    _row("DCN-v2", lambda: Subject(DCN(), _CLICKS)),
    _row("xDeepFM", lambda: Subject(XDeepFM(), _CLICKS)),
    _row("AutoInt", lambda: Subject(AutoInt(), _CLICKS)),
    _row("NCF", lambda: Subject(NeuralCollaborativeFiltering(), _PAIRS)),
    _row("two towers", lambda: Subject(TwoTowers(), batches(user=integers(50), item=integers(50)))),
    _row("SASRec", lambda: Subject(SASRec(), batches(history=_HISTORY, positive=_HISTORY, negative=_HISTORY)), True),
    _row("DIN", lambda: Subject(DIN(), batches(history=_HISTORY, item=integers(50), clicked=_clicked))),
)
