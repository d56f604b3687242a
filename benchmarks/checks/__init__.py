"""The parts of `gpu.py`: each is a module with `run(report, setting)`, in a process of its own."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Setting:
    """What a part runs on; `tiny` means sizes with which it takes seconds on a CPU."""

    device: torch.device
    tiny: bool

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"
