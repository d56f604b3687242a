"""Buffers of which forward reads the values: constants of a model where they are not saved with it, and not written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import galvatron
from galvatron.errors import CaptureError, GalvatronError
from galvatron.facts import facts_of_model
from galvatron.ir.capture import capture_graph
from galvatron.ir.capture.constants import MOST_OF_BUFFER
from tests import models


class Net(nn.Module):
    """A linear layer, a stride and a kernel as tensors, and what a function makes of them."""

    stride: Tensor
    kernel: Tensor

    def __init__(self, function: Callable[[Net, Tensor], Tensor], *, saved: bool = False, size: int = 1) -> None:
        super().__init__()
        self.linear, self.function = nn.Linear(8, 8, dtype=torch.float64), function
        self.register_buffer("stride", torch.tensor(2), persistent=saved)
        self.register_buffer("kernel", torch.full((size,), 5), persistent=saved)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, self.linear(x)).square().mean()


def padded(net: Net, h: Tensor) -> Tensor:
    """Sizes and a branch that follow from buffers, as in convolutions of audio."""
    frames = torch.ceil((h.shape[-1] - net.kernel[0]) / net.stride).to(torch.int64)
    extra = (frames * net.stride + net.kernel[0]) - h.shape[-1]
    if h.shape[-1] <= max(net.kernel[0], extra):
        return h
    sizes: Any = (net.stride, extra)
    h = F.pad(h, sizes)
    return h[..., : net.kernel[0]] * net.stride


def branching(net: Net, h: Tensor) -> Tensor:
    return h if net.stride > 1 else 2 * h


def written_after(net: Net, h: Tensor) -> Tensor:
    h = branching(net, h)
    net.stride.add_(1)
    return h


def written_before(net: Net, h: Tensor) -> Tensor:
    net.stride.add_(1)
    return branching(net, h)


def assigned(net: Net, h: Tensor) -> Tensor:
    h = branching(net, h)
    net.stride = net.stride * 2
    return h


def of_values(net: Net, h: Tensor) -> Tensor:
    return h if (net.stride + h.sum()) > 1 else 2 * h


def of_kernel(net: Net, h: Tensor) -> Tensor:
    return h if net.kernel.max() > 1 else 2 * h


BATCH = {"x": torch.linspace(-1, 1, 32, dtype=torch.float64).reshape(4, 8)}


@pytest.mark.parametrize(("function", "read"), [(padded, {"stride", "kernel"}), (branching, {"stride"})])
def test_values_are_those_of_the_model(function: Callable[[Net, Tensor], Tensor], read: set[str]) -> None:
    net = Net(function)
    captured = capture_graph(net, BATCH)
    assert captured.fixed == read
    graph, values = captured.program.required_graph, models.tensors_of(captured.program, net, BATCH, captured.constants)
    found = models.loss_and_gradients(models.run(graph, values, 4), net)
    models.assert_close(found, models.loss_and_gradients(net(**BATCH), net), 1e-12)


def test_a_part_of_a_free_length_has_no_values() -> None:
    net = Net(lambda net, h: h * net.kernel[: h.shape[1], None], size=16)
    batch = {"x": torch.ones(4, 6, 8, dtype=torch.float64)}
    captured = capture_graph(net, batch, dynamic={"x": {1: "S"}})
    assert not captured.fixed and [str(length) for length in captured.program.lengths] == ["S"]


@pytest.mark.parametrize("function", [written_after, written_before, assigned])
def test_what_forward_writes_is_no_constant(function: Callable[[Net, Tensor], Tensor]) -> None:
    with pytest.raises(CaptureError, match=r"net.stride > 1 .*'stride', which forward writes"):
        capture_graph(Net(function), BATCH)


@pytest.mark.parametrize(
    "net",
    [
        Net(branching, saved=True),
        Net(of_values),
        Net(of_kernel, size=MOST_OF_BUFFER + 1),
        Net(branching).to("meta"),
    ],
)
def test_others_have_no_values(net: Net) -> None:
    with pytest.raises(CaptureError, match="depends on the values of a tensor"):
        capture_graph(net, BATCH)


def test_what_shares_memory_has_no_values() -> None:
    net = Net(branching)
    net.register_buffer("view", net.get_buffer("stride").view(1), persistent=False)
    with pytest.raises(CaptureError, match="depends on the values of a tensor"):
        capture_graph(net, BATCH)


def test_a_compiled_program_is_for_these_values() -> None:
    net = Net(branching)
    compiled = galvatron.compile(net, BATCH, plan="dp1")
    compiled.eval_step(BATCH)
    net.stride.fill_(1)
    with pytest.raises(GalvatronError, match="'stride' was changed in place after the model was compiled"):
        compiled.eval_step(BATCH)


@pytest.mark.parametrize("name", ["stride", "kernel"])
def test_ranks_agree_on_all_values(name: str) -> None:
    net, other = Net(branching, size=MOST_OF_BUFFER), Net(branching, size=MOST_OF_BUFFER)
    other.linear.load_state_dict(net.linear.state_dict())
    assert facts_of_model(net) == facts_of_model(other)
    other.get_buffer(name).view(-1)[-1] += 1
    assert facts_of_model(net) != facts_of_model(other)
