"""Traps of tracing: what is captured all the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.compiler import is_compiling
from torch.utils.checkpoint import checkpoint

from galvatron.ir.capture import capture_graph
from galvatron.ir.types import TensorType
from tests.ir.nets import Net, assert_equals_eager, batch_of, in_place_on_input, many_results


def no_gradients(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        teacher = net.first(x).softmax(-1)
        scale = teacher.sum(-1, keepdim=True)
    return (net.second(net.first(x)) * teacher * scale).square().sum()


def gradients_within_no_gradients(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        h = net.first(x)
        with torch.enable_grad():
            z = net.second(h)
        w = z * 2
    return (z * w).sum()


def detached(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (net.first(x).detach() * net.first(x)).sum()


def in_place(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    h = net.first(x)
    h.mul_(2)
    h[:, :3] = 0.5
    h[:, 4].add_(net.second(x)[:, 0])
    return h.relu_().square().sum()


def checkpointed(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return F.mse_loss(checkpoint(lambda h: net.second(net.first(h).relu()), x, use_reentrant=False), y)


def autocast_off(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", enabled=False):
        h = net.first(x)
    return F.mse_loss(h, y)


def loss_in_a_region(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    h = net.first(x)
    with torch.autocast("cpu", enabled=False):
        return F.mse_loss(h, y)


def constants(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    weights = torch.tensor([1.0, 2, 3, 4, 5, 6, 7, 8], dtype=torch.float64)
    return (net.first(x) * weights / torch.tensor(3.0)).square().sum()


def sign_of_zero(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    signs = torch.tensor([0.0, -0.0] * 4, dtype=torch.float64)
    return F.mse_loss(torch.copysign(net.first(x), signs), y)


def complex_constant(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    turned = net.first(x) * torch.tensor([1j] * 8, dtype=torch.complex128)
    return F.mse_loss(turned.imag, y)


def counter(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    net.calls += 1
    return F.mse_loss(net.first(x), y)


def batch_size_as_a_number(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return net.first(x).square().sum() / (x.shape[0] * x.shape[1]) + x.shape[0]


def flattened_batch(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    pairs = torch.cat([x, y]).view(2, -1, 2, 4).transpose(0, 1).flatten(1, 2)
    return net.first(pairs.reshape(-1, 8)).square().mean()


def converted_to_what_it_is(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    net.first = net.first.to(x.device, net.first.weight.dtype)
    return F.mse_loss(net.first.to(x).double()(x), y)


def unlike_when_traced(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    h = net.first(x) if torch.compiler.is_exporting() else net.second(x)
    return F.mse_loss(h if is_compiling() else h.tanh(), y)


def values_of_constants(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    h = net.first(x)
    mask, offsets = torch.ones(8, 8, device=x.device).triu(1), torch.zeros(3)
    offsets[1:].fill_(2)
    if torch.equal(mask, mask.triu()) and bool((mask == mask.T).any()):
        h = h.tanh()
    return F.mse_loss(h * int(offsets.sum()) + offsets.max().item() + torch.arange(3).tolist()[2], y)


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    "forward",
    [
        no_gradients, detached, in_place, in_place_on_input, checkpointed, autocast_off, loss_in_a_region, constants,
        sign_of_zero, complex_constant, counter, batch_size_as_a_number, many_results, flattened_batch,
        gradients_within_no_gradients, converted_to_what_it_is, unlike_when_traced, values_of_constants,
    ],
    ids=lambda forward: forward.__name__,
)  # fmt: skip
def test_traps(forward: Callable[..., Any]) -> None:
    assert_equals_eager(Net(forward))


def test_autocast_becomes_casts() -> None:
    def forward(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            h = net.first(x.float())
        return F.mse_loss(h.double(), y)

    net = Net(forward)
    net.first.float()
    graph = assert_equals_eager(net)
    assert graph.producers["linear"].result.type.dtype == "bf16"


def test_constants_keep_their_data() -> None:
    captured = capture_graph(Net(constants), batch_of(4))
    data = {s.name: captured.constants[s.name] for s in captured.program.state if s.kind == "constant"}
    assert list(data) == ["constant.0"] == list(captured.constants)
    assert data["constant.0"].tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert captured.program.graph is not None
    fill = captured.program.graph.producers["full"]
    assert (fill.args, fill.result.type) == (((), 3.0), TensorType("f32", ()))


def test_region_keeps_the_line_of_its_ops() -> None:
    graph = capture_graph(Net(no_gradients), batch_of(4)).program.graph
    assert graph is not None
    source = graph.producers["softmax"].source
    assert source is not None
    assert source.code == "teacher = net.first(x).softmax(-1)"
