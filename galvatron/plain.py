"""What a caller has switched on in torch around a call of ours, and is not about it, is off while the call runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch


@contextmanager
def plain_torch(device: torch.device | str = "cpu") -> Iterator[None]:
    """Inside the `with` block tensors are made with gradients and values, on a device of ours: no inference mode, no
    `no_grad`, no default device, and no detection of anomalies, which looks at values that fake tensors do not have.

    Args:
        device: where tensors are made if the caller has set a default device.
    """
    with torch.inference_mode(False), torch.enable_grad(), torch.autograd.set_detect_anomaly(False), on_device(device):
        yield


@contextmanager
def on_device(device: torch.device | str) -> Iterator[None]:
    """Inside the `with` block the caller's default device, if there is one, is this device."""
    with nullcontext() if torch.get_default_device().type == "cpu" else torch.device(device):
        yield
