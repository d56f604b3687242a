"""Which rows go to which rank of an axis, by what they choose: arithmetic on ids alone, which the runtime does and the
cost model watches."""

from __future__ import annotations

import torch
from torch import Tensor


def rows_by_rank(chosen: Tensor, size: int, ranks: int, own: int) -> tuple[Tensor, Tensor]:
    """The order of a rank's rows by the rank that they go to, and how many there are of each kind.

    Args:
        chosen: [rows], whole numbers. One that is none of `size` stays on its rank.
        size: how many there are to choose, of which each rank has an equal part.
        own: which of the ranks this is.

    Returns:
        The order, [rows], and counts, [ranks, size / ranks + 1]: by rank, how many rows choose each of its part, and
        behind these how many choose nothing.
    """
    each = size // ranks
    # Each rank's part, and behind it those that choose nothing and stay.
    slots = chosen + chosen.div(each, rounding_mode="floor")
    slots = slots.where((chosen >= 0) & (chosen < size), own * (each + 1) + each)
    ordered, order = slots.sort(stable=True)
    last = torch.arange(size + ranks, device=chosen.device, dtype=chosen.dtype)
    ends = torch.searchsorted(ordered, last, right=True)
    return order, ends.diff(prepend=ends.new_zeros(1)).view(ranks, each + 1)


def choices_that_come(counts: Tensor, own: int, rows: int) -> Tensor:
    """What the rows choose that come to a rank, -1 where it is nothing.

    Args:
        counts: [ranks, part + 1], how many come from each rank of each kind, as in `rows_by_rank`.
        rows: how many these are in all.
    """
    ranks, kinds = counts.shape
    first = own * (kinds - 1)
    part = torch.arange(first, first + kinds, device=counts.device)
    part[-1] = -1
    return part.repeat(ranks).repeat_interleave(counts.flatten(), output_size=rows)
