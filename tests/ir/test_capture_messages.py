"""What is said of a model that cannot be captured: its line, what is wrong there, and what its author can do."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import galvatron
from galvatron.errors import CaptureError

Forward = Callable[[nn.Module, Tensor, Tensor], Tensor]


class Model(nn.Module):
    def __init__(self, function: Forward) -> None:
        super().__init__()
        self.a = nn.Linear(6, 8)
        self.table = nn.Embedding(8, 8)
        self.function = function

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.function(self, self.a(x), y)


def refusal(function: Forward, y: Tensor | None = None) -> str:
    batch = {"x": torch.randn(8, 6), "y": torch.arange(8) if y is None else y}
    with pytest.raises(CaptureError) as caught:
        galvatron.capture(Model(function), batch)
    return str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64, torch.bool, torch.uint8])
@pytest.mark.parametrize(
    "look_up",
    [
        lambda m, h, y: (m.table(y) * h).sum(),
        lambda m, h, y: (h.index_select(1, y) * h).sum(),
    ],
    ids=["embedding", "index_select"],
)
def test_indices_are_whole_numbers(look_up: Forward, dtype: torch.dtype) -> None:
    message = refusal(look_up, torch.arange(8).to(dtype))
    assert "test_capture_messages.py:" in message
    assert str(dtype) in message or "Long" in message  # torch's words, where it looks at fake indices itself


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_whole_numbers_are_indices(dtype: torch.dtype) -> None:
    batch = {"x": torch.randn(8, 6), "y": torch.arange(8).to(dtype)}
    assert galvatron.capture(Model(lambda m, h, y: (m.get_submodule("table")(y) * h).sum()), batch)
