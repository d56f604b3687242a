"""A model that asks for the class of a tensor, or for the values of one that is the same for all samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from galvatron.errors import CaptureError
from galvatron.ir.capture import capture_graph
from tests import models


class Net(nn.Module):
    """A linear layer, and what a function makes of its result and of a mask of ones."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.linear, self.function = nn.Linear(8, 8, dtype=torch.float64), function

    def forward(self, x: Tensor) -> Tensor:
        h = self.linear(x)
        return self.function(h, torch.ones((x.shape[0], 8), device=x.device)).square().mean()


def unless_fake(h: Tensor, mask: Tensor) -> Tensor:
    """As models leave out a mask that hides nothing, but not while they are traced."""
    mask = mask.to(torch.bool)
    if not isinstance(mask, torch._subclasses.FakeTensor) and mask.all():
        return h.tanh()
    return torch.where(mask, h, 0.0)


def by_an_import(h: Tensor, mask: Tensor) -> Tensor:
    from torch._subclasses.fake_tensor import FakeTensor

    return torch.where(mask > 0, h, 0.0) if isinstance(mask, FakeTensor) else h.tanh()


def by_values(h: Tensor, mask: Tensor) -> Tensor:
    hidden = ~mask[:, None, :4].bool()
    return h if hidden.any() or (mask == 0).any() or not (mask.unsqueeze(1) >= 1).all() else h.tanh()


def by_a_sum(h: Tensor, mask: Tensor) -> Tensor:
    mask, number = mask.bool(), mask.numel()
    return h if mask.sum() != number or mask.long().sum() == number + 1 else h.tanh()


def by_repeated_places(h: Tensor, mask: Tensor) -> Tensor:
    """As models look for several sequences in one row."""
    places = torch.arange(8)[None]
    places = places.expand(h.shape[0], -1) if h.shape[0] != 1 else places
    packed = (torch.diff(places, prepend=places[:, :1] - 1, dim=-1) != 1).cumsum(-1)
    if not isinstance(packed, torch._subclasses.FakeTensor) and (packed[:, -1] == 0).all():
        return h.tanh()
    return h


@pytest.mark.parametrize("function", [unless_fake, by_an_import, by_values, by_a_sum, by_repeated_places])
def test_what_is_the_same_for_all_samples_has_values(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    net = Net(function)
    program = capture_graph(net, {"x": torch.randn(4, 8, dtype=torch.float64)}).program
    assert "tanh" in {op.name for op in program.required_graph.ops}
    for size in (1, 6):
        batch = {"x": torch.randn(size, 8, dtype=torch.float64)}
        loss = models.run(program.required_graph, models.tensors_of(program, net, batch, {}), size)
        found, wanted = models.loss_and_gradients(loss, net), models.loss_and_gradients(net(**batch), net)
        models.assert_close(found, wanted, 1e-12)


def of_the_batch(h: Tensor, mask: Tensor) -> Tensor:
    return torch.relu(h) if isinstance(h, torch._subclasses.FakeTensor) else h.tanh()


def test_what_is_computed_of_the_batch_is_fake() -> None:
    program = capture_graph(Net(of_the_batch), {"x": torch.randn(4, 8, dtype=torch.float64)}).program
    assert "relu" in {op.name for op in program.required_graph.ops}
    assert torch._subclasses.FakeTensor is FakeTensor, "given back"


def summed(h: Tensor, mask: Tensor) -> Tensor:
    return h if mask.sum() > 40 else h.tanh()


def summed_and_written(h: Tensor, mask: Tensor) -> Tensor:
    number = mask.long().sum()
    number += 1
    return h if number == mask.numel() + 1 else h.tanh()


def of_the_others(h: Tensor, mask: Tensor) -> Tensor:
    return h if mask[1:].any() else h.tanh()


def added_up(h: Tensor, mask: Tensor) -> Tensor:
    return h if (mask.cumsum(0) > 1).any() else h.tanh()


def added_up_as_in_numpy(h: Tensor, mask: Tensor) -> Tensor:
    return h if (mask.cumsum(axis=0) > 1).any() else h.tanh()  # type: ignore[call-arg]


def less_the_one_before(h: Tensor, mask: Tensor) -> Tensor:
    return h if torch.diff(mask, dim=0, prepend=mask[:1] - 1).any() else h.tanh()


def listed(h: Tensor, mask: Tensor) -> Tensor:
    return h * mask[:, 0].tolist()[0]


def compared(h: Tensor, mask: Tensor) -> Tensor:
    return h if torch.equal(mask, torch.ones_like(h[:, :1]).expand(-1, 8)) else h.tanh()


def written(h: Tensor, mask: Tensor) -> Tensor:
    mask[:, 0] = h[:, 0] > 0
    return h if mask.all() else h.tanh()


def chosen_by_samples(h: Tensor, mask: Tensor) -> Tensor:
    return h if torch.where(h > 0, mask, 0.0).any() else h.tanh()


@pytest.mark.parametrize(
    "function",
    [
        summed, summed_and_written, of_the_others, added_up, added_up_as_in_numpy, less_the_one_before, listed,
        compared, written,
        chosen_by_samples,
    ],
)  # fmt: skip
def test_what_depends_on_the_number_of_samples_or_on_them_has_none(function: Any) -> None:
    with pytest.raises(CaptureError, match="values of a tensor|fixes the batch size"):
        capture_graph(Net(function), {"x": torch.randn(4, 8, dtype=torch.float64)})
