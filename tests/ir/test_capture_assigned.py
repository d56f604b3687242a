"""What forward assigns to the attributes of a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from galvatron.errors import CaptureError
from galvatron.ir.capture import capture_graph
from tests.ir.nets import Net, batch_of


def caching(net: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    if not hasattr(net, "ramp"):
        net.ramp = torch.arange(8, dtype=x.dtype)
        net.history = {}
    net.history["last"] = net.first(x)
    return (net.history["last"] * net.ramp).sum()


def test_what_forward_assigns_is_taken_back() -> None:
    net: Any = Net(caching)
    before = dict(net.__dict__)
    capture_graph(net, batch_of(4))
    assert net.__dict__ == before
    net.history, net.ramp = {}, torch.ones(8, dtype=torch.float64)
    capture_graph(net, batch_of(4))
    assert net.history == {}


class Remembers(nn.Module):
    """A model that assigns something in forward; `how` says what, and what the loss reads of it."""

    def __init__(self, how: Callable[[Any, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.linear, self.how = nn.Linear(4, 4), how
        self.register_buffer("n", torch.zeros(()), persistent=False)
        self.register_buffer("mean", torch.zeros(()))
        self.count, self.cache, self.table = 0, None, {}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.how(self, self.linear(x).square().mean())


def _counted(self: Any, loss: torch.Tensor) -> torch.Tensor:
    self.count += 1
    return loss * self.count


def _buffered(self: Any, loss: torch.Tensor) -> torch.Tensor:
    self.n = self.n + 1
    return loss * self.n


def _averaged(self: Any, loss: torch.Tensor) -> torch.Tensor:
    self.mean = 0.9 * self.mean + 0.1 * loss.detach()
    return loss


def _recalled(self: Any, loss: torch.Tensor) -> torch.Tensor:
    last, self.cache = self.cache, loss.detach()
    return loss if last is None else loss + last


def _made_once(self: Any, loss: torch.Tensor) -> torch.Tensor:
    if self.cache is None:
        self.cache = torch.ones(4, 4).triu()
    return loss * self.cache.sum()


def _logged(self: Any, loss: torch.Tensor) -> torch.Tensor:
    self.table["loss"], self.count = loss.detach(), self.count + 1
    return loss


@pytest.mark.parametrize(("how", "name"), [(_buffered, "n"), (_averaged, "mean")])
def test_what_forward_assigns_to_a_buffer_is_an_update(how: Any, name: str) -> None:
    program = capture_graph(Remembers(how), {"x": torch.zeros(4, 4)}).program
    assert [update.state for update in program.updates] == [name]


@pytest.mark.parametrize("how", [_counted, _recalled])
def test_what_forward_assigns_for_its_next_step_is_refused(how: Any) -> None:
    with pytest.raises(CaptureError, match="assigns .* in forward and reads it in the next step, which would be lost"):
        capture_graph(Remembers(how), {"x": torch.zeros(4, 4)})


@pytest.mark.parametrize("how", [_made_once, _logged])
def test_what_forward_assigns_and_never_needs_again_is_no_matter(how: Any) -> None:
    assert capture_graph(Remembers(how), {"x": torch.zeros(4, 4)}).program.graph is not None
