"""How tests say which of their parameters `make test` leaves out, and what an older torch cannot do."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch

TORCH = tuple(int(part) for part in torch.__version__.split(".")[:2])
"""The version of torch, without the last number."""


def needs_torch(version: tuple[int, int], reason: str) -> pytest.MarkDecorator:
    """For what fails because of torch itself before a version."""
    return pytest.mark.xfail(version > TORCH, reason=f"torch {'.'.join(map(str, TORCH))}: {reason}", strict=True)


def some_slow(fast: Iterable[Any], others: Iterable[Any]) -> list[Any]:
    """Parameters of which those that are only in `others` are left to `make test-all`; a tuple is several arguments."""
    fast = list(fast)
    left = [value if isinstance(value, tuple) else (value,) for value in others if value not in fast]
    return [*fast, *(pytest.param(*values, marks=pytest.mark.slow) for values in left)]
