"""Sizes that were computed before are not computed again, and captures are what they were."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch._dynamo.source import ConstantSource
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from galvatron.ir.capture import capture_graph, export
from galvatron.ir.capture.arithmetic import computed_once
from galvatron.ir.text import print_program


def sizes(*hints: int) -> tuple[ShapeEnv, list[torch.SymInt]]:
    """Free sizes with the values of an example."""
    environment = ShapeEnv(duck_shape=False)
    found: list[torch.SymInt] = []
    for number, hint in enumerate(hints):
        source = ConstantSource(f"size_{number}")
        size = environment.create_symintnode(environment.create_symbol(hint, source), hint=hint, source=source)
        assert isinstance(size, torch.SymInt)
        found.append(size)
    return environment, found


def test_a_computation_is_done_once() -> None:
    _, (a, b) = sizes(5, 7)
    with computed_once():
        assert (a + b).node is (a + b).node
        assert (a * b).node.expr == (b * a).node.expr != (a + b).node.expr
        assert (a * 2).node.hint == 10 and (a + 2).node.hint == 7
        assert bool(a < b) and not bool(b < a)
    assert (a + b).node is not (a + b).node


def test_what_sizes_are_found_to_be_equal_to_counts() -> None:
    environment, (a, b) = sizes(5, 5)
    with computed_once():
        before = (a - b).node
        assert bool(a == b)
        assert environment.replace(b.node.expr) == environment.replace(a.node.expr)
        assert (a - b).node is not before and (a - b).node.expr == 0


class Sizes(nn.Module):
    """Joins, cuts and multiplies sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.linear = nn.Conv2d(3, 4, 3, 2, 1), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.convolution(x).flatten(2).transpose(1, 2)
        y = self.linear(y.reshape(-1, 4)).view(x.shape[0], -1, 4)
        halves = torch.cat([y[:, ::2], y[:, 1::2]], 1)
        return (halves @ halves.transpose(1, 2)).square().sum() / (x.shape[0] * y.shape[1])


def test_captures_are_the_same_as_without(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = {"x": torch.zeros(6, 3, 8, 8)}
    model = Sizes()
    text = print_program(capture_graph(model, batch).program)
    monkeypatch.setattr(export, "computed_once", nullcontext)
    assert print_program(capture_graph(model, batch).program) == text
