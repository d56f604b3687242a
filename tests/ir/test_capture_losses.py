"""Losses without reduction keep one value per sample, whatever torch records under a symbolic batch size."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from galvatron.ir.capture import capture_graph

LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "cross_entropy": lambda x, t, _: F.cross_entropy(x, t, reduction="none"),
    "nll_loss": lambda x, t, _: F.nll_loss(x.log_softmax(-1), t, reduction="none"),
    "margin_ranking_loss": lambda x, _, y: F.margin_ranking_loss(x, y, y.sign(), reduction="none"),
    "hinge_embedding_loss": lambda x, _, y: F.hinge_embedding_loss(x, y.sign(), reduction="none"),
}


class Model(nn.Module):
    def __init__(self, loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.linear, self.loss = nn.Linear(6, 6), loss

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return torch.atan(self.loss(self.linear(x), t, y)).sum()


@pytest.mark.parametrize("name", LOSSES)
def test_unreduced_loss_has_the_shape_of_the_batch(name: str) -> None:
    batch = {"x": torch.randn(8, 6), "t": torch.randint(0, 6, (8,)), "y": torch.randn(8, 6)}
    graph = capture_graph(Model(LOSSES[name]), batch).program.graph
    assert graph is not None
    (op,) = (op for op in graph.ops if op.target == "aten.atan.default")
    expected = LOSSES[name](batch["x"], batch["t"], batch["y"]).shape
    assert [str(d) for d in op.result.type.shape] == ["B", *map(str, expected[1:])]
