"""How often whole numbers occur, in a stated number of bins.

`torch.bincount` makes as many bins as the largest number needs, and at least `minlength`: a size that depends on
values. Models state one that is enough, such as the number of experts. So there are as many bins as they say, and a
number that has none is an error of the step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

_COUNTS = (torch.bincount, torch.Tensor.bincount)


class StatedBins(TorchFunctionMode):
    """Counts numbers without weights into as many bins as the model says."""

    def __torch_function__(
        self, func: Any, _: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in _COUNTS:
            numbers, weights, bins = _given(*args, **(kwargs or {}))
            if weights is None and type(bins) is int and bins > 0:
                return F.one_hot(numbers.long(), bins).sum(0)
        return func(*args, **(kwargs or {}))


def _given(input: torch.Tensor, weights: torch.Tensor | None = None, minlength: int = 0) -> tuple[Any, ...]:
    return input, weights, minlength
