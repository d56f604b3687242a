"""What is said of a model that cannot be captured: its line, what is wrong there, and what its author can do."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import galvatron
from galvatron.errors import CaptureError

Forward = Callable[[Any, Tensor, Tensor], Tensor]


class Model(nn.Module):
    def __init__(self, function: Forward) -> None:
        super().__init__()
        self.a = nn.Linear(6, 8)
        self.table = nn.Embedding(8, 8)
        self.norm = nn.BatchNorm1d(8, momentum=None)
        self.seen = torch.zeros(8)
        self.function = function

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.function(self, self.a(x), y)


def refusal(function: Forward, y: Tensor | None = None) -> str:
    batch = {"x": torch.randn(8, 6), "y": torch.arange(8) if y is None else y}
    with pytest.raises(CaptureError) as caught:
        galvatron.capture(Model(function), batch)
    return str(caught.value)


def halves(m: Any, h: Tensor, y: Tensor) -> Tensor:
    n = len(h)
    return (h[: n // 2] * h[n // 2 :]).mean()


def chunks(m: Any, h: Tensor, y: Tensor) -> Tensor:
    first, second = h.chunk(2)
    return (first * second).mean()


def pairs(m: Any, h: Tensor, y: Tensor) -> Tensor:
    return h.view(-1, 2, 8).prod(1).mean()


def logarithm(m: Any, h: Tensor, y: Tensor) -> Tensor:
    return h.mean() / math.log(h.shape[0])


def range_of_floats(m: Any, h: Tensor, y: Tensor) -> Tensor:
    return (h * torch.linspace(0, 1, h.shape[0])[:, None]).mean()


def looked_up(m: Any, h: Tensor, y: Tensor) -> Tensor:
    return h.mean() * {8: 1.0, 4: 2.0}[h.shape[0]]


def gradient_of_function(m: Any, h: Tensor, y: Tensor) -> Tensor:
    return torch.func.grad(lambda z: m.a(z).pow(2).mean())(h[:, :6]).pow(2).mean()


def gradients_of_rows(m: Any, h: Tensor, y: Tensor) -> Tensor:
    return torch.vmap(torch.func.grad(lambda z: m.a(z).pow(2).sum()))(h[:, :6]).pow(2).mean()


def jacobian(m: Any, h: Tensor, y: Tensor) -> Tensor:
    return torch.func.jacrev(lambda z: m.a(z).tanh())(h[0, :6]).pow(2).mean()


def branch(m: Any, h: Tensor, y: Tensor) -> Tensor:
    return torch.cond(h.sum() > 0, lambda z: z.sin().mean(), lambda z: z.cos().mean(), (h,))


def fitted(m: Any, h: Tensor, y: Tensor) -> Tensor:
    return torch.linalg.lstsq(h, y[:, None].float()).solution.mean()


def averaged(m: Any, h: Tensor, y: Tensor) -> Tensor:
    return m.norm(h).pow(2).mean()


def counted(m: Any, h: Tensor, y: Tensor) -> Tensor:
    lengths = (h > 0).sum(1).tolist()
    return h.mean() * len(set(lengths))


def of_two_types(m: Any, h: Tensor, y: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        z = m.a(h[:, :6])
    return (z @ m.a.weight).mean()


REFUSED: dict[Any, tuple[str, str]] = {
    halves: ("cutting the dimension of samples into parts is not supported", "give the parts as inputs of their own"),
    chunks: ("cutting the dimension of samples into parts is not supported", "give the parts as inputs of their own"),
    pairs: ("cutting the dimension of samples into parts is not supported", "give the parts as inputs of their own"),
    logarithm: ("math.log takes a plain number and fixes the batch size at 8", "compute it with arithmetic"),
    range_of_floats: ("torch.linspace takes a plain number and fixes the batch size at 8", "torch.arange"),
    counted: ("control flow or a size depends on the values of a tensor", "torch.where"),
    looked_up: ("looked up in a dictionary or set", "with arithmetic"),
    gradient_of_function: ("a gradient is computed inside forward", "write the gradient as a formula"),
    gradients_of_rows: ("a gradient is computed inside forward", "write the gradient as a formula"),
    jacobian: ("a gradient is computed inside forward", "write the gradient as a formula"),
    branch: ("torch cannot trace a branch or loop on values", "torch.where"),
    fitted: ("linalg_lstsq.default computes depends on the values", "use operations whose shapes follow"),
    averaged: ("averages of a batch norm depend on the values of a counter", "GroupNorm or LayerNorm"),
    of_two_types: ("matmul of tensors of several types (torch.bfloat16, torch.float32)", "cast one of them"),
}
"""By a forward: what is wrong with it, and what to do."""


@pytest.mark.one_in(3)
@pytest.mark.parametrize("function", REFUSED, ids=lambda f: f.__name__)
def test_what_is_wrong_and_what_to_do(function: Any) -> None:
    wrong, todo = REFUSED[function]
    message = refusal(function)
    line, _, said = message.partition("`: ")
    assert "test_capture_messages.py:" in line
    assert wrong in said and todo in said
    assert not re.search(r"\b[su]\d+\b|Mod\(|//", said)


def test_a_tensor_attribute_that_forward_writes() -> None:
    def written(m: Any, h: Tensor, y: Tensor) -> Tensor:
        m.seen.add_(1)
        return h.mean()

    assert "'seen' is written in place in forward" in refusal(written)
    assert "register it as a buffer" in refusal(written)

    def read(m: Any, h: Tensor, y: Tensor) -> Tensor:
        m.seen.add_(1)
        return (h * m.seen).mean()

    assert "`m.seen.add_(1)`: a second forward computes something else" in refusal(read)


def test_what_is_read_through_data() -> None:
    assert "through .detach()" in refusal(lambda m, h, y: h.mean() + m.a.weight.data.norm())


def test_code_without_a_file_has_no_line_of_ours() -> None:
    names: dict[str, Any] = {"nn": nn}
    exec("class Made(nn.Module):\n def forward(self, x):\n  return x.mean() * float(x.sum())", names)
    with pytest.raises(CaptureError) as caught:
        galvatron.capture(names["Made"](), {"x": torch.randn(4, 2)})
    assert "galvatron/api.py" not in str(caught.value)


def test_a_check_in_a_loss_of_torch_names_the_line_that_calls_it() -> None:
    def likelihood(m: Any, h: Tensor, y: Tensor) -> Tensor:
        return F.gaussian_nll_loss(h, 2 * h, h.exp())

    (check,) = galvatron.capture(Model(likelihood), {"x": torch.randn(8, 6), "y": torch.arange(8)}).checks
    assert "test_capture_messages.py:" in check.says and "F.gaussian_nll_loss(" in check.says
    assert check.says.endswith("ValueError: var has negative entry/entries")


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
    assert galvatron.capture(Model(lambda m, h, y: (m.table(y) * h).sum()), batch)
