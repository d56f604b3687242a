"""Rows at the ranks of the matrices that they choose: as if one rank had all of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from galvatron import runtime as rt
from tests.ranks import run_ranks

MATRICES, WIDTH, OUT = 6, 3, 2
IDS = {
    "spread": lambda rank: torch.arange(5 + rank) % MATRICES,
    "some choose none": lambda rank: torch.arange(-2, 9 + rank),
    "all choose one": lambda rank: torch.full((4,), 4),
    "one rank has no rows": lambda rank: torch.arange(5 * rank) % MATRICES,
}


def rows_of(kind: str, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The rows of a rank, what they choose, and the gradients of their results."""
    ids = IDS[kind](rank)
    draws = torch.Generator().manual_seed(rank)
    rows, gradient = (torch.randn(len(ids), width, generator=draws, dtype=torch.float64) for width in (WIDTH, OUT))
    return rows, gradient, ids


def multiplied(weight: Tensor, rows: Tensor, ids: Tensor) -> Tensor:
    """Each row by its matrix, zero where it has none."""
    known = (ids >= 0) & (ids < len(weight))
    result = (weight[ids.clamp(0, len(weight) - 1)] @ rows.unsqueeze(-1)).squeeze(-1)
    return result * known.unsqueeze(-1)


def whole_weight() -> Tensor:
    return torch.randn(MATRICES, OUT, WIDTH, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


def on_a_rank(world: rt.World, kind: str, started: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
    axis = rt.build_mesh(world, [[(world.size, 1)]]).axis(world.size, stride=1)
    own = MATRICES // world.size
    weight = whole_weight()[own * world.rank : own * (world.rank + 1)].clone().requires_grad_()
    rows, gradient, ids = rows_of(kind, world.rank)
    rows.requires_grad_()
    told = {"dim": 0, "by": ids, "size": MATRICES}
    if started:
        there = rt.wait(rt.dispatch(rows, axis, **told, started=True), axis)
        made = rt.grouped_linear(there, weight, ids, axis=axis, size=MATRICES, routed=True)
        result = rt.wait(rt.combine(made, axis, **told, started=True), axis)
    else:
        there = rt.dispatch(rows, axis, **told)
        made = rt.grouped_linear(there, weight, ids, axis=axis, size=MATRICES, routed=True)
        result = rt.combine(made, axis, **told)
    result.backward(gradient)
    return result.detach(), rows.grad, weight.grad


@pytest.mark.parametrize(
    ("kind", "ranks"), [("spread", 2), ("some choose none", 3), ("all choose one", 2), ("one rank has no rows", 2)]
)
@pytest.mark.parametrize("started", [False, True])
def test_rows_are_multiplied_where_their_matrices_are(kind: str, ranks: int, started: bool) -> None:
    found = run_ranks(on_a_rank, ranks, kind, started)
    weight = whole_weight().requires_grad_()
    of_weight = torch.cat([weight_gradient for _, _, weight_gradient in found])
    for rank, (result, of_rows, _) in enumerate(found):
        rows, gradient, ids = rows_of(kind, rank)
        rows.requires_grad_()
        expected = multiplied(weight, rows, ids)
        expected.backward(gradient)
        torch.testing.assert_close(result, expected.detach())
        torch.testing.assert_close(of_rows, rows.grad)
    torch.testing.assert_close(of_weight, weight.grad)
