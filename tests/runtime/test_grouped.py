"""Rows times the matrices that they choose: beside a product for each row, in value and gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from galvatron import runtime as rt
from galvatron.grouped import grouped_linear
from galvatron.runtime import comm
from tests.ranks import run_ranks

IDS = {
    "some": [2, 0, 2, 3, 0, 2, 3],
    "all to one": [1] * 7,
    "none": [-1, 4, 9, -5, 4, 4, -1],
    "some none": [4, 0, -1, 0, 3, 7, 3],
    "no rows": [],
}


def by_row(rows: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
    each = [
        weight[i] @ row if 0 <= i < len(weight) else row.new_zeros(weight.size(1)) + 0 * row.sum()
        for row, i in zip(rows, ids.tolist(), strict=True)
    ]
    return torch.stack(each) if each else rows.new_zeros(0, weight.size(1)) + 0 * (rows.sum() + weight.sum())


def given(ids: list[int], matrices: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(len(ids))
    rows = torch.randn(len(ids), 5, dtype=torch.float64, generator=generator, requires_grad=True)
    weight = torch.randn(matrices, 3, 5, dtype=torch.float64, generator=generator, requires_grad=True)
    return rows, weight, torch.tensor(ids, dtype=torch.int64)


@pytest.mark.parametrize("ids", IDS)
def test_is_a_product_for_each_row(ids: str) -> None:
    rows, weight, chosen = given(IDS[ids])
    found, expected = grouped_linear(rows, weight, chosen), by_row(rows, weight, chosen)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    gradient = torch.randn(expected.shape, dtype=torch.float64)
    weight_used = bool(set(IDS[ids]) & set(range(4))) or not IDS[ids]
    leaves = [rows, weight]
    found = torch.autograd.grad(found, leaves, gradient)
    wanted = torch.autograd.grad(expected, leaves, gradient, allow_unused=not weight_used)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, torch.zeros_like(one) if other is None else other, rtol=1e-12, atol=1e-12)


def test_torch_checks_it() -> None:
    """Its description for fake tensors, its gradients beside differences, and that it leaves its operands alone."""
    torch.library.opcheck(torch.ops.galvatron.grouped_linear.default, given(IDS["some none"]))
    rows, weight, ids = given(IDS["some none"])
    assert torch.autograd.gradcheck(lambda x, w: grouped_linear(x, w, ids), (rows, weight))


def on_slices(world: rt.World, matrices: int) -> None:
    axis = rt.build_mesh(world, [[(world.size, 1)]]).axis(world.size, stride=1)
    rows, weight, ids = given(IDS["some"], matrices)
    expected = grouped_linear(rows, weight, ids)
    gradient = torch.ones_like(expected)
    wanted = torch.autograd.grad(expected, [rows, weight], gradient)
    place = rt.Sharded(0, padded=True)
    own = place.take(weight.detach(), axis).clone().requires_grad_()
    part = rt.grouped_linear(rows, own, ids, axis=axis, size=matrices)
    of_rows, of_weight = torch.autograd.grad(part, [rows, own], gradient)
    for one, other in ((part.detach(), expected), (of_rows, wanted[0])):
        comm.all_reduce(one, axis.group).wait()
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(of_weight, place.take(wanted[1], axis), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("matrices", [4, 5])
def test_ranks_have_some_of_the_matrices(matrices: int) -> None:
    """Evenly or not: filler is chosen by no row."""
    run_ranks(on_slices, 2, matrices)
