"""Lists of as many parts as there are samples: a tensor of them is one for every batch size, anything else fixes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from galvatron.errors import CaptureError
from galvatron.ir.capture import capture_graph
from tests import models


class Net(nn.Module):
    """A table, looked up at what a function makes of the number of samples."""

    def __init__(self, function: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.table, self.function = nn.Embedding(5, 8, dtype=torch.float64), function

    def forward(self, x: Tensor) -> Tensor:
        found = self.table(self.function(x.shape[0]).to(torch.int64))
        return F.mse_loss(found.reshape(x.shape[0], -1, 8).sum(1), x)


def zeros(size: int) -> Tensor:
    return torch.tensor([0] * size)


def size_first(size: int) -> Tensor:
    return torch.tensor(size * [3])


def several(size: int) -> Tensor:
    return torch.tensor([1, 2] * size, dtype=torch.int32)


def nested(size: int) -> Tensor:
    parts = [[1, 2, 4]] * size
    assert isinstance(parts, list)
    return torch.tensor(parts)


def of_a_product(size: int) -> Tensor:
    return torch.tensor([2] * (2 * size))


@pytest.mark.parametrize("function", [zeros, size_first, several, nested, of_a_product])
def test_a_tensor_of_a_repeated_list(function: Callable[[int], Tensor]) -> None:
    net = Net(function)
    captured = capture_graph(net, {"x": torch.randn(4, 8, dtype=torch.float64)})
    program = captured.program
    batch = {"x": torch.randn(6, 8, dtype=torch.float64)}
    loss = models.run(program.required_graph, models.tensors_of(program, net, batch, captured.constants), 6)
    found, wanted = models.loss_and_gradients(loss, net), models.loss_and_gradients(net(**batch), net)
    models.assert_close(found, wanted, 1e-12)


def changed(size: int) -> Tensor:
    parts = [0] * size
    parts[0] = 1
    return torch.tensor(parts)


def appended(size: int) -> Tensor:
    parts = [0] * size
    parts.append(1)
    return torch.tensor(parts[1:])


def longer(size: int) -> Tensor:
    return torch.tensor([1] + [0] * size)[1:]


def counted(size: int) -> Tensor:
    return torch.arange(len([0] * size)) % 5


def iterated(size: int) -> Tensor:
    return torch.stack([torch.tensor(part) for part in [0] * size])


def of_tensors(size: int) -> Tensor:
    return torch.stack([torch.tensor(1)] * size)


def shown(size: int) -> Tensor:
    return torch.full((size,), len(str([0] * size)) % 5)


@pytest.mark.parametrize("function", [changed, appended, longer, counted, iterated, of_tensors, shown])
def test_what_asks_for_the_list_fixes_the_batch(function: Callable[[int], Tensor]) -> None:
    with pytest.raises(CaptureError, match="test_capture_lists.py.*fixes the batch size at 4"):
        capture_graph(Net(function), {"x": torch.randn(4, 8, dtype=torch.float64)})
