"""A group in which nothing is sent, for measuring what is computed between communications that are priced apart."""

from __future__ import annotations

from collections.abc import Sequence

import torch.distributed as dist
from torch import Tensor


class SilentGroup(dist.ProcessGroup):
    """Stands for a group of ranks of which this is the first: its communications are over when they begin.

    Tensors that would receive something keep what happens to be in their memory, but whole numbers are zeros, since
    they may be places in other tensors.
    """

    def __init__(self, size: int) -> None:
        super().__init__(0, size)  # type: ignore[call-arg]  # torch has this way of making one, its stub has not

    @staticmethod
    def communicated(tensors: Sequence[Tensor]) -> None:
        """What remains of a communication of these tensors."""
        for tensor in tensors:
            if not (tensor.is_floating_point() or tensor.is_complex()):
                tensor.zero_()
