"""A small model whose forward is any function, and what is asked of its capture."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from galvatron.ir.capture import capture_graph
from galvatron.ir.graph import Graph
from galvatron.passes.frontend.normalize import Normalize
from tests import models


class Net(nn.Module):
    """Two linear layers and two buffers; `forward` is the function it is given."""

    scale: torch.Tensor
    calls: torch.Tensor

    def __init__(self, forward: Callable[..., Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.register_buffer("scale", torch.rand(8), persistent=False)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.double()
        self.function = forward
        self.forward = lambda x, y: self.function(self, x, y)  # type: ignore[method-assign]  # one forward per test


def batch_of(size: int, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(size, 8, generator=generator, dtype=torch.float64) for name in ("x", "y")}


def assert_equals_eager(model: nn.Module, tolerance: float = 1e-12) -> Graph:
    """The captured and the normalised graph of a model equal it at several batch sizes; gives the captured graph."""
    captured = capture_graph(model, batch_of(4))
    for program in (captured.program, Normalize().run(captured.program)):
        assert program.graph is not None
        for size in (4, 3):
            batch = batch_of(size, seed=size)
            values = models.tensors_of(program, model, batch, captured.constants)
            actual = models.loss_and_gradients(models.run(program.graph, values, size), model)
            models.assert_close(actual, models.loss_and_gradients(model(**batch), model), tolerance)
    assert captured.program.graph is not None
    return captured.program.graph


def targets(graph: Graph) -> list[str]:
    return [op.target for op in graph.ops]


def many_results(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    a, b = net.first(x).split([3, 5], dim=-1)
    values, _ = torch.cat([b, a], -1).chunk(2, -1)[1].max(-1)
    return values.flatten().sum(0, keepdim=True).view(()) + torch.stack(x.unbind(1), 1).mul(net.second(y)).sum()


def in_place_on_input(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    y = y.clone()
    y[y > 1] = 0
    return F.mse_loss(net.first(x), y)
