"""Rows that a mask selects: all rows, with the loss and the gradients of eager, or refused with the line."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from galvatron.errors import CaptureError
from galvatron.ir.capture import capture_graph
from galvatron.ir.interpreter import run_graph
from galvatron.ir.program import Program

WIDTH = 6
Forward = Callable[["Net", Tensor, Tensor], Tensor]


class Net(nn.Module):
    """A layer and a table, and a loss of what comes out of the layer and of a tensor of numbers from -1 to 1."""

    def __init__(self, loss: Forward) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.table, self.loss = nn.Linear(WIDTH, WIDTH), nn.Embedding(3, WIDTH), loss
        self.double()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.loss(self, self.layer(x), y)


def batch_of(size: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(size)
    x = torch.randn(size, WIDTH, generator=generator, dtype=torch.float64)
    return {"x": x, "y": torch.rand(size, WIDTH, generator=generator, dtype=torch.float64) * 2 - 1}


def captured(forward: Forward) -> Program:
    return capture_graph(Net(forward), batch_of(4)).program


def assert_equals(forward: Forward, batch: dict[str, Tensor]) -> Tensor:
    """Loss and gradients of the captured program are those of the model; gives the loss."""
    net, program = Net(forward), captured(forward)
    size = len(batch["x"])
    found = run_graph(program.required_graph, {**dict(net.named_parameters()), **batch}, batch=size)[program.output]
    expected = net(**batch)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12, equal_nan=True)
    given, wanted = (
        torch.autograd.grad(loss, list(net.parameters()), allow_unused=True, materialize_grads=True)
        for loss in (found, expected)
    )
    for one, other in zip(given, wanted, strict=True):
        assert torch.isfinite(other).all()
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    return expected


def by_functions_that_are_infinite_at_zero(net: Net, h: Tensor, y: Tensor) -> Tensor:
    chosen, others = h[y > 0], y[y > 0]
    total = chosen.abs().log() + chosen.abs().rsqrt() + chosen / others + others / chosen + chosen.abs() ** 0.3
    return total.mean() + F.binary_cross_entropy(chosen.sigmoid() * 2 - 0.5 * chosen.sigmoid() - 0.25, others)


def of_numbers(net: Net, h: Tensor, y: Tensor) -> Tensor:
    """What is not selected is no number."""
    h = torch.where(y > 0, h, math.inf)
    chosen = h[torch.isfinite(h)]
    return (net.layer.bias.sum() * chosen * chosen.abs().sqrt()).sum()


def of_rows(net: Net, h: Tensor, y: Tensor) -> Tensor:
    rows = h[y[:, 0] > 0]
    return (rows.T @ rows).square().sum() + F.layer_norm(rows, (WIDTH,)).softmax(-1).amax(-1).sum() / rows.numel()


def of_columns(net: Net, h: Tensor, y: Tensor) -> Tensor:
    columns = h[:, net.table.weight[0] > 0]
    return columns.sum(1).square().mean() + columns.mean(1).sum() + columns.mean()


def by_numbers_of_rows(net: Net, h: Tensor, y: Tensor) -> Tensor:
    rows = h[y[:, 0] > 0]
    added = rows + torch.zeros(len(rows), 1, dtype=h.dtype) + rows.new_ones(rows.shape)
    return added.sum() / rows.shape[0] + added.sum() * (1 / len(rows)) + added.square().sum() / (2 * rows.numel())


def of_labels(net: Net, h: Tensor, y: Tensor) -> Tensor:
    """Labels of rows that are not selected are no places in a table."""
    keep, labels = y[:, 0] > 0, (y[:, 1] > 0).long() + 1
    chosen = labels[keep] - 1
    each = F.cross_entropy(h[keep], chosen, reduction="none") * F.one_hot(chosen - 0, 3).sum(-1)
    return each.mean() + (net.table(chosen) * h[keep]).sum() + h[keep].gather(1, chosen[:, None]).sum()


def added_back(net: Net, h: Tensor, y: Tensor) -> Tensor:
    keep = y[:, 0] > 0
    added = h.index_put((keep,), h[keep].tanh(), accumulate=True)
    added = added.index_put((y > 0.5,), torch.tensor(2.0, dtype=h.dtype))
    rows = added[keep]
    rows[y[:, 1][keep] > 0] = rows[y[:, 1][keep] > 0].tanh()
    added = added.index_put((keep,), rows)
    added[:, 1:][y[:, 1:] < -0.5] = net.table.weight[0, :1]
    return added.square().sum()


def of_a_mask_for_all(net: Net, h: Tensor, y: Tensor) -> Tensor:
    return h.masked_select(y[:, :1] > 0).square().mean() + h.masked_select(y > 0).sum()


def by_indices(net: Net, h: Tensor, y: Tensor) -> Tensor:
    row, column = torch.where(y.T > 0)
    pairs = (y > 0).nonzero()
    chosen = h[column, row] * net.table.weight[0, row]
    return (
        torch.zeros(WIDTH, dtype=h.dtype).index_add(0, row, chosen).square().sum() + h[pairs[:, 0], pairs[:, 1]].sum()
    )


def of_what_is_alike(net: Net, h: Tensor, y: Tensor) -> Tensor:
    """Masks and values that are broadcast, and a square, of which rows and columns are not the same."""
    square, row = net.layer.weight, net.table.weight[0] > 0
    rows = square.masked_select(row[:, None]).square().mean()
    return rows + (square.masked_select(row) * 3).sum() + h[:, :1].masked_select(y > 0).sum() / 0.5


EQUAL = [
    by_functions_that_are_infinite_at_zero, of_numbers, of_rows, of_columns, by_numbers_of_rows, of_labels, added_back,
    of_a_mask_for_all, of_what_is_alike, by_indices,
]  # fmt: skip


@pytest.mark.one_in(6)
@pytest.mark.parametrize("forward", EQUAL, ids=lambda forward: forward.__name__)
def test_all_rows_give_what_selected_rows_give(forward: Forward) -> None:
    for size in (5, 2):
        assert_equals(forward, batch_of(size))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_where_nothing_is_selected(reduction: str) -> None:
    def forward(net: Net, h: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(h[y > 0], y[y > 0], reduction=reduction)

    loss = assert_equals(forward, {"x": batch_of(3)["x"], "y": -torch.ones(3, WIDTH, dtype=torch.float64)})
    assert loss.isnan() if reduction == "mean" else loss == 0


def of_two_masks(net: Net, h: Tensor, y: Tensor) -> Tensor:
    return (h[y > 0] * h[y < 0]).sum()


def of_selected_and_others(net: Net, h: Tensor, y: Tensor) -> Tensor:
    return (h[y[:, 0] > 0] * y).sum()


def of_equally_many_in_each_sample(net: Net, h: Tensor, y: Tensor) -> Tensor:
    return h[y > 0].reshape(h.shape[0], -1).amax(1).sum()


def of_the_order(net: Net, h: Tensor, y: Tensor) -> Tensor:
    return h[y > 0].cumsum(0).sum()


def of_the_first(net: Net, h: Tensor, y: Tensor) -> Tensor:
    return h[y[:, 0] > 0][0].sum()


def of_the_greatest(net: Net, h: Tensor, y: Tensor) -> Tensor:
    return h[y > 0].amax()


def of_places(net: Net, h: Tensor, y: Tensor) -> Tensor:
    return (h[y[:, 0] > 0] * torch.arange(len(h[y[:, 0] > 0]))[:, None]).sum()


def of_spreads(net: Net, h: Tensor, y: Tensor) -> Tensor:
    """Whose derivative is infinite where all are alike, as in a row of zeros."""
    return h[y[:, 0] > 0].std(-1).sum()


def of_infinity(net: Net, h: Tensor, y: Tensor) -> Tensor:
    rows = h[y[:, 0] > 0]
    return rows.masked_fill(rows == 0, -math.inf).log_softmax(-1)[:, 0].sum()


def of_infinity_in_a_tensor(net: Net, h: Tensor, y: Tensor) -> Tensor:
    rows, infinity = h[y[:, 0] > 0], torch.full((), -math.inf, dtype=h.dtype).expand(WIDTH)
    return torch.where(rows == 0, infinity, rows).log_softmax(-1)[:, 0].sum()


def of_indices(net: Net, h: Tensor, y: Tensor) -> Tensor:
    (row,) = torch.where(y[:, 0] > 0)
    return (h[row].sum(-1) * row).sum()


def of_indices_of_indices(net: Net, h: Tensor, y: Tensor) -> Tensor:
    (row,) = torch.where(y[:, 0] > 0)
    return h[row[row]].sum()


def of_indices_in_a_column(net: Net, h: Tensor, y: Tensor) -> Tensor:
    return h[(y[:, 0] > 0).nonzero()].sum()


def of_more_than_the_mask(net: Net, h: Tensor, y: Tensor) -> Tensor:
    (column,) = torch.where(net.table.weight[0, :3] > 0)
    return h[:, column].sum()


def of_rows_and_columns(net: Net, h: Tensor, y: Tensor) -> Tensor:
    square, row = net.layer.weight, net.table.weight[0] > 0
    return (square.masked_select(row[:, None]) * square.masked_select(row)).sum()


def of_halves(net: Net, h: Tensor, y: Tensor) -> Tensor:
    return h.sum() * (len(h[y > 0]) / 2)


def of_a_number(net: Net, h: Tensor, y: Tensor) -> Tensor:
    return h.sum() * len(h[y > 0]) ** 0.5


def of_a_limit(net: Net, h: Tensor, y: Tensor) -> Tensor:
    return h[y > 0].sum() / max(len(h[y > 0]), 1)


def written_from_others(net: Net, h: Tensor, y: Tensor) -> Tensor:
    return h.index_put((y > 0,), h[y < 0]).sum()


def with_other_lengths(net: Net, h: Tensor, y: Tensor) -> Tensor:
    keep, labels = y > 0, (y.abs() * 2).long() + 1
    scores = h[None].expand(9, -1, -1).log_softmax(-1)
    lengths = torch.full(h.shape[:1], 9)
    return F.ctc_loss(scores, labels.masked_select(keep), lengths, (y < 0).sum(-1), reduction="sum")


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    ("forward", "said"),
    [
        (of_two_masks, "mul does not treat each selected row by itself"),
        (of_selected_and_others, "a size depends on the values"),
        (of_equally_many_in_each_sample, "a size depends on the values"),
        (of_the_order, "cumsum does not treat each selected row by itself"),
        (of_the_first, "select does not treat each selected row by itself"),
        (of_the_greatest, "amax does not treat each selected row by itself"),
        (of_places, "arange does not treat each selected row by itself"),
        (of_spreads, "std does not treat each selected row by itself"),
        (of_infinity, "masked_fill may be given a number that is not finite"),
        (of_infinity_in_a_tensor, "where may be given a number that is not finite"),
        (of_indices, "a size depends on the values"),
        (of_indices_of_indices, "a size depends on the values"),
        (of_indices_in_a_column, "a size depends on the values"),
        (of_more_than_the_mask, "a size depends on the values"),
        (of_rows_and_columns, "mul does not treat each selected row by itself"),
        (of_halves, "a number depends on the values"),
        (of_a_number, "a number depends on the values"),
        (of_a_limit, "on the values of a tensor"),
        (written_from_others, "a size depends on the values"),
        (with_other_lengths, "the lengths of the targets are not those of what is selected in each sample"),
    ],
    ids=lambda case: case.__name__ if callable(case) else "",
)
def test_refused(forward: Forward, said: str) -> None:
    with pytest.raises(CaptureError) as error:
        captured(forward)
    source, first = inspect.getsourcelines(forward)
    numbers = [first + i for i, text in enumerate(source) if text.strip() and f"`{text.strip()}`: " in str(error.value)]
    assert any(f"test_selections.py:{number}: " in str(error.value) for number in numbers), str(error.value)
    assert said in str(error.value)
