"""How tests say which of their parameters `make test` leaves out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def some_slow(fast: Iterable[Any], others: Iterable[Any]) -> list[Any]:
    """Parameters of which those that are only in `others` are left to `make test-all`; a tuple is several arguments."""
    fast = list(fast)
    left = [value if isinstance(value, tuple) else (value,) for value in others if value not in fast]
    return [*fast, *(pytest.param(*values, marks=pytest.mark.slow) for values in left)]
