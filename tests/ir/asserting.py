"""Parts of models with assertions, in a file whose assertions pytest leaves as they are."""

from __future__ import annotations

from typing import Any

import torch


def check_that_asserts(net: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    h = net.first(x)
    assert torch.isfinite(h).all(), "not finite"
    return h.square().sum()


def condition_inside_of_an_assert(net: Any, h: torch.Tensor) -> torch.Tensor:
    assert torch.isfinite(h := (h * 2 if h.sum() > 1e9 else h * 3)).all()
    return h


def assignment_that_may_be_left_out(net: Any, h: torch.Tensor) -> torch.Tensor:
    assert h.sum() > 1e9 or (h := h * 2).sum() < 1e9
    return h


def choice_on_the_line_of_a_check(net: Any, h: torch.Tensor) -> torch.Tensor:
    h = h * 2 if h.sum() > 0 else h; assert h.isfinite().all()  # fmt: skip  # noqa: E702
    return h


def choice_as_a_message(net: Any, h: torch.Tensor) -> torch.Tensor:
    if h.sum() > 0: assert h.isfinite().all(); h = h * 2  # fmt: skip  # noqa: E701, E702
    return h


def assigns_in_a_check(net: Any, h: torch.Tensor) -> torch.Tensor:
    assert (h := h * 2).isfinite().all()
    return h
