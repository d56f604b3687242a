"""Losses and layers that select rows by a mask, as people write them, each around two blocks."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, LENGTH, VOCABULARY, EXPERTS = 8, 4, 12, 3
Batch = dict[str, Tensor]
Loss = Callable[["Selecting", Tensor, Batch], Tensor]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(self.norm(x))))


class Selecting(nn.Module):
    """Tokens through two blocks, in the place of some of which another may stand, and a loss of what comes out."""

    def __init__(self, loss: Loss, masks_tokens: bool) -> None:
        super().__init__()
        self.table, self.token = nn.Embedding(VOCABULARY, WIDTH), nn.Parameter(torch.full((WIDTH,), 0.3))
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.dense, self.norm = nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY)
        self.loss, self.masks_tokens = loss, masks_tokens

    def forward(self, tokens: Tensor, labels: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        h = self.table(tokens)
        if self.masks_tokens:
            h = h.clone()
            h[mask] = self.token
        for block in self.blocks:
            h = block(h)
        return self.loss(self, h, {"tokens": tokens, "labels": labels, "target": target, "mask": mask})


def batch_of(size: int, seed: int) -> Batch:
    """Labels of which some samples have none, and masks that choose unequally many tokens of each sample."""
    generator = torch.Generator().manual_seed(seed)
    tokens, labels = torch.randint(1, VOCABULARY, (2, size, LENGTH), generator=generator)
    labels[torch.rand(size, LENGTH, generator=generator) > 0.5] = -100
    labels[: size // 4] = -100
    target = torch.randn(size, LENGTH, WIDTH, generator=generator, dtype=torch.float64)
    return {
        "tokens": tokens,
        "labels": labels,
        "target": target,
        "mask": torch.rand(size, LENGTH, generator=generator) > 0.6,
    }


def masked_language(model: Selecting, h: Tensor, batch: Batch) -> Tensor:
    labels = batch["labels"]
    return F.cross_entropy(model.head(h)[labels != -100], labels[labels != -100])


def head_of_labelled(model: Selecting, h: Tensor, batch: Batch) -> Tensor:
    """The head is computed of labelled positions alone, as in ModernBERT."""
    labels = batch["labels"].view(-1)
    keep = labels != -100
    chosen = model.norm(F.gelu(model.dense(h.view(-1, WIDTH)[keep])))
    return F.cross_entropy(model.head(chosen), labels[keep], label_smoothing=0.1)


def masked_regression(model: Selecting, h: Tensor, batch: Batch) -> Tensor:
    return F.smooth_l1_loss(model.dense(h)[batch["mask"]], batch["target"][batch["mask"]])


def mean_of_logarithms(model: Selecting, h: Tensor, batch: Batch) -> Tensor:
    """What is not selected would make infinities: logarithms and quotients of zeros."""
    h = model.dense(h)
    chosen = h[h > 0]
    return chosen.log().mean() + (1 / chosen.sqrt()).sum() / len(chosen) + (batch["target"][h > 0] / chosen).mean()


def written_back(model: Selecting, h: Tensor, batch: Batch) -> Tensor:
    h, mask = h.clone(), batch["mask"]
    h[mask] = model.dense(h[mask]).tanh()
    return F.mse_loss(h, batch["target"])


def at_indices(model: Selecting, h: Tensor, batch: Batch) -> Tensor:
    sample, place = torch.where(batch["mask"])
    flat = batch["mask"].view(-1).nonzero().squeeze(-1)
    chosen = model.dense(h[sample, place]) + h.view(-1, WIDTH).index_select(0, flat)
    pooled = torch.zeros(h.shape[0], WIDTH, dtype=h.dtype).index_add(0, sample, chosen)
    return F.mse_loss(pooled, batch["target"].sum(1)) + (chosen.square().sum(-1)).mean()


def selected_twice(model: Selecting, h: Tensor, batch: Batch) -> Tensor:
    mask, labels = batch["mask"], batch["labels"]
    chosen, kept = model.head(h)[mask], labels[mask]
    return F.cross_entropy(chosen[kept >= 0], kept[kept >= 0], reduction="sum") / kept.shape[0]


def transcribed(model: Selecting, h: Tensor, batch: Batch) -> Tensor:
    """As models of speech do, with targets of all samples in one row."""
    labels = batch["labels"].roll(1, 1)
    mask = labels >= 0
    scores = model.head(h.repeat(1, 2, 1)).log_softmax(-1).transpose(0, 1)
    lengths = torch.full((h.shape[0],), 2 * LENGTH)
    return F.ctc_loss(scores, labels.masked_select(mask), lengths, mask.sum(-1), reduction="sum", zero_infinity=True)


def chosen_experts(model: Selecting, h: Tensor, batch: Batch) -> Tensor:
    """A loop over the experts that are chosen, each with rows of a matrix for its own."""
    h = h.view(-1, WIDTH)
    weights, index = h[:, :EXPERTS].softmax(-1).topk(2, -1)
    masks = F.one_hot(index, EXPERTS).permute(2, 1, 0)
    hit, table = (masks.sum((-1, -2)) > 0).nonzero(), model.head.weight.view(EXPERTS, -1, WIDTH)
    found = torch.zeros_like(h[:, : VOCABULARY // EXPERTS])
    for expert in hit:
        choice, token = torch.where(masks[expert[0]])
        found.index_add_(0, token, F.linear(h[token], table[expert[0]]).tanh() * weights[token, choice, None])
    return F.mse_loss(found, batch["target"].view(-1, WIDTH)[:, : VOCABULARY // EXPERTS])


SELECTIONS: dict[str, Loss] = {
    loss.__name__: loss
    for loss in (
        masked_language, head_of_labelled, masked_regression, mean_of_logarithms, written_back, at_indices,
        selected_twice, transcribed, chosen_experts,
    )
}  # fmt: skip


def selecting(name: str) -> Selecting:
    return Selecting(SELECTIONS[name], masks_tokens=name == "masked_regression")
