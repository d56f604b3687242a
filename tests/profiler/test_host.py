"""What the process is timed with."""

from __future__ import annotations

import torch

from galvatron.profiler.host import launched


def test_views_launch_nothing() -> None:
    x = torch.ones(4, 4)
    assert launched(lambda: x.view(2, 8).t()) == 0
    assert launched(lambda: (x + 1.0).view(16) * 2.0) == 2
