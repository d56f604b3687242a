"""The watch over tensor memory counts what tensors hold."""

from __future__ import annotations

import torch
from common.memory import watched

MIB = 2**20


def test_peak_since_begin() -> None:
    with watched() as memory:
        large = torch.empty(8 * MIB, dtype=torch.uint8)
        del large
        held = torch.empty(MIB, dtype=torch.uint8)
        memory.begin()
        passing = torch.empty(3 * MIB, dtype=torch.uint8)
        del passing
    assert (memory.peak_bytes, memory.left_bytes) == (4 * MIB, MIB)
    assert held.numel() == MIB


def test_a_backward_pass_counts() -> None:
    parameter = torch.nn.Parameter(torch.zeros(MIB // 4))
    with watched() as memory:
        (parameter * 2).sum().backward()
    assert parameter.grad is not None
    assert memory.left_bytes >= MIB
