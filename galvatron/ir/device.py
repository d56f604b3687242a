"""Devices: what one accelerator, or one rank's share of a processor, holds and does."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """One accelerator: memory in bytes, achievable matmul rate per element type in FLOP/s, memory bandwidth in
    bytes/s.

    Attributes:
        kind: torch's name of the type of device, which decides what kernels its operators run: `"cuda"` or `"cpu"`.
    """

    name: str
    memory_bytes: int
    matmul_flop_per_s: tuple[tuple[str, float], ...]
    memory_bytes_per_s: float
    kernel_launch_s: float = 0.0
    kind: str = "cuda"

    def flop_per_s(self, dtype: str) -> float:
        """The matmul rate for an element type; a type without a rate of its own runs at the slowest one."""
        return dict(self.matmul_flop_per_s).get(dtype) or min(rate for _, rate in self.matmul_flop_per_s)
