"""Loops over the experts that some token has chosen, as people write them, each of a model with a few experts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EXPERTS, WIDTH = 4, 6
Loop = Callable[["Mixture", Tensor, Tensor, Tensor, Tensor], Tensor]


class Mixture(nn.Module):
    """A loop over its experts, of which each token has chosen two.

    It is given the masks by expert, choice and token, the indices of the experts that are chosen, and the weights by
    token and choice.
    """

    experts: Any  # a list of modules by a tensor

    def __init__(self, loop: Loop) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.router, self.loop, self.calls = nn.Linear(WIDTH, EXPERTS), loop, 0
        self.experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(EXPERTS))
        self.table = nn.Parameter(torch.randn(EXPERTS, WIDTH, WIDTH))
        self.double()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        self.calls = 0
        weights, index = self.router(x).softmax(-1).topk(2, -1)
        masks = F.one_hot(index, EXPERTS).permute(2, 1, 0)
        hit = torch.greater(masks.sum((-1, -2)), 0).nonzero()
        return F.mse_loss(self.loop(self, x, masks, hit, weights), y)


def by_modules(net: Mixture, x: Tensor, masks: Tensor, hit: Tensor, weights: Tensor) -> Tensor:
    found = torch.zeros_like(x)
    for expert in hit:
        choice, token = torch.where(masks[expert].squeeze(0))
        found.index_add_(0, token, net.experts[expert[0]](x[token]) * weights[token, choice, None])
    return found


def by_tables(net: Mixture, x: Tensor, masks: Tensor, hit: Tensor, weights: Tensor) -> Tensor:
    found = torch.zeros_like(x)
    for expert in hit.squeeze(-1):
        if expert == EXPERTS - 1:
            continue
        with torch.no_grad():
            choice, token = torch.where(masks[expert])
        chosen = F.linear(x[token], net.table[expert]).relu()
        chosen = chosen * weights[token, choice, None]
        found.index_add_(0, token, chosen)
    return found


def where_all_is_kept(net: Mixture, x: Tensor, masks: Tensor, hit: Tensor, weights: Tensor) -> Tensor:
    """A condition that does not say of a turn that it selects nothing."""
    found = torch.zeros_like(x)
    for expert in (masks.sum((-1, -2)) > 2).nonzero():
        choice, token = torch.where(masks[expert[0]])
        found.index_add_(0, token, net.experts[expert[0]](x[token]))
    return found


def with_one_too_many(net: Mixture, x: Tensor, masks: Tensor, hit: Tensor, weights: Tensor) -> Tensor:
    """The last is no expert's, so that no token may choose it."""
    masks = F.pad(masks, (0, 0, 0, 0, 0, 1))
    found = torch.zeros_like(x)
    for expert in (masks.sum((-1, -2)) > 0).nonzero():
        choice, token = torch.where(masks[expert[0]])
        found.index_add_(0, token, F.linear(x[token], net.table[expert[0]]))
    return found


def that_ends(net: Mixture, x: Tensor, masks: Tensor, hit: Tensor, weights: Tensor) -> Tensor:
    found = torch.zeros_like(x)
    for expert in hit:
        if expert[0] == 2:
            break
        choice, token = torch.where(masks[expert[0]])
        found.index_add_(0, token, x[token])
    return found


def that_counts(net: Mixture, x: Tensor, masks: Tensor, hit: Tensor, weights: Tensor) -> Tensor:
    found, turns = torch.zeros_like(x), 0
    for expert in hit:
        choice, token = torch.where(masks[expert[0]])
        turns = turns + 1
        found.index_add_(0, token, x[token])
    return found / turns


def that_counts_in_the_model(net: Mixture, x: Tensor, masks: Tensor, hit: Tensor, weights: Tensor) -> Tensor:
    def counted(rows: Tensor) -> Tensor:
        net.calls += 1
        return rows * net.calls

    found = torch.zeros_like(x)
    for expert in hit:
        choice, token = torch.where(masks[expert[0]])
        found.index_add_(0, token, counted(x[token]))
    return found


def that_keeps_a_list(net: Mixture, x: Tensor, masks: Tensor, hit: Tensor, weights: Tensor) -> Tensor:
    found = [torch.zeros_like(x)]
    for expert in hit:
        choice, token = torch.where(masks[expert[0]])
        found.append(torch.zeros_like(x).index_add(0, token, x[token]))
    return torch.stack(found).mean(0)


def that_is_numbered(net: Mixture, x: Tensor, masks: Tensor, hit: Tensor, weights: Tensor) -> Tensor:
    found = torch.zeros_like(x)
    for turn, expert in enumerate(hit):
        choice, token = torch.where(masks[expert[0]])
        found.index_add_(0, token, x[token] * turn)
    return found


def of_which_the_last_is_used(net: Mixture, x: Tensor, masks: Tensor, hit: Tensor, weights: Tensor) -> Tensor:
    found = x
    for expert in hit:
        choice, token = torch.where(masks[expert[0]])
        found = x.index_add(0, token, net.experts[expert[0]](x[token]))
    return found


def that_adds_more(net: Mixture, x: Tensor, masks: Tensor, hit: Tensor, weights: Tensor) -> Tensor:
    found = torch.zeros_like(x)
    for expert in hit:
        choice, token = torch.where(masks[expert[0]])
        found.index_add_(0, token, x[token])
        found.add_(net.table[expert[0], 0])
    return found


def of_other_indices(net: Mixture, x: Tensor, masks: Tensor, hit: Tensor, weights: Tensor) -> Tensor:
    found = torch.zeros_like(x)
    hit.clamp_(max=2)
    for expert in hit:
        choice, token = torch.where(masks[expert[0]])
        found.index_add_(0, token, x[token])
    return found


def that_adds_other_rows(net: Mixture, x: Tensor, masks: Tensor, hit: Tensor, weights: Tensor) -> Tensor:
    found = torch.zeros_like(x)
    first = torch.where(masks[0])
    for expert in hit:
        choice, token = first
        found.index_add_(0, token, F.linear(x[token], net.table[expert[0]]))
    return found


EQUAL = [by_modules, by_tables, where_all_is_kept]
REFUSED = [
    that_ends, that_counts, that_counts_in_the_model, that_keeps_a_list, that_is_numbered, of_which_the_last_is_used,
    of_other_indices, that_adds_more, that_adds_other_rows,
]  # fmt: skip
