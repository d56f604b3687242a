"""What the process takes for an op whose kernel is as good as nothing: a step is not faster than its host."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from galvatron.profiler.cases import Case
from galvatron.profiler.meter import Call

_CHAIN = 50
"""Ops of one call."""


def host_cases(device: torch.device) -> Iterator[Case]:
    """Ops of a few elements: alone, with what autograd records, with their backward, and those that move nothing; and
    on the device the smallest kernel."""
    ops: dict[str, Callable[[], Call]] = {
        "op": lambda: _chain(device, recorded=False),
        "recorded op": lambda: _chain(device, recorded=True),
        "recorded op and backward": lambda: _chain_and_back(device),
        "view": lambda: _views(device),
    }
    for how, prepare in ops.items():
        yield Case("host", how, "f32", (), 1.0, 1024.0, prepare, calls=_CHAIN, on_host=True)
    yield Case("launch", "kernel", "f32", (), 1.0, 1024.0, lambda: _smallest(device))


def _chain(device: torch.device, *, recorded: bool) -> Callable[[], Tensor]:
    x = torch.ones(8, device=device, requires_grad=recorded)

    def run() -> Tensor:
        y = x
        for _ in range(_CHAIN):
            y = y * 1.5
        return y

    return run


def _chain_and_back(device: torch.device) -> Call:
    chain = _chain(device, recorded=True)
    gradient = torch.ones(8, device=device)
    return lambda: chain().backward(gradient)


def _views(device: torch.device) -> Call:
    x = torch.ones(8, device=device, requires_grad=True)

    def run() -> None:
        for _ in range(_CHAIN // 2):
            x.view(2, 4).view(8)

    return run


def _smallest(device: torch.device) -> Call:
    x = torch.ones(8, device=device)
    return lambda: x.add_(1.0)
