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
    def communicated(kind: str, tensors: Sequence[Tensor]) -> None:
        """What remains of a communication of these tensors, which are in the order of the functions of `comm`."""
        received = tensors[_RECEIVED[kind]] if kind in _RECEIVED else None
        if received is not None and not (received.is_floating_point() or received.is_complex()):
            received.zero_()


_RECEIVED = {"all_gather": 0, "reduce_scatter": 1, "all_to_all": 1, "ring": 1}
"""By kind of a communication, which of its tensors is written; of others it is the one that is sent as well."""
