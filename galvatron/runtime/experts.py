"""Rows that go to the ranks of the matrices that they choose, and what comes of them back: expert parallelism.

Each rank of an axis has rows of its own and some of the matrices. How many rows go where is data, so ranks first tell
each other; a rank that gets no rows, or has none, takes part all the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from galvatron.runtime import comm
from galvatron.runtime.comm import now
from galvatron.runtime.mesh import Axis


@dataclass(frozen=True)
class Counts:
    """How many rows go to each rank of an axis, and how many come from each."""

    sent: tuple[int, ...]
    received: tuple[int, ...]

    @property
    def back(self) -> Counts:
        """Those of the way back."""
        return Counts(self.received, self.sent)


class _Exchange(torch.autograd.Function):
    """Rows in the order of the ranks that they go to, for those that come from the ranks in their order; the gradient
    goes back the same way."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: Counts, axis: Axis) -> Tensor:
        ctx.counts, ctx.axis, ctx.place = counts, axis, now.place
        return exchanged(rows, counts, axis)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        now.place = ctx.place
        gradient = exchanged(gradients[0].contiguous(), ctx.counts.back, ctx.axis)
        now.place = None
        return gradient, None, None


def exchanged(rows: Tensor, counts: Counts, axis: Axis) -> Tensor:
    """What comes to this rank of the rows of all ranks, each of which has laid its own end to end by the rank that they
    go to."""
    received = rows.new_empty(sum(counts.received), *rows.shape[1:])
    comm.all_to_all(received, rows, axis.group, received_parts=counts.received, sent_parts=counts.sent).wait()
    return received


def at_their_matrices(
    function: Callable[[Tensor, Tensor], Tensor], rows: Tensor, ids: Tensor, axis: Axis, matrices: int, size: int
) -> Tensor:
    """`function(rows, ids)` with each row on the rank of the axis that has the matrix of its id.

    Args:
        function: of rows of any ranks and the numbers of this rank's matrices that they choose, rows for rows.
        rows: [rows, ...], this rank's.
        ids: [rows], which of all `size` matrices. One that is none of them stays on its rank, and chooses none there.
        matrices: of each rank.
    """
    is_one = (ids >= 0) & (ids < size)
    owner = torch.where(is_one, ids.div(matrices, rounding_mode="floor"), axis.index)
    order = owner.argsort(stable=True)
    counts = _counted(owner, axis)
    at_owner = torch.where(is_one, ids - owner * matrices, -1)
    own_ids = exchanged(at_owner[order], counts, axis)
    own_rows = _Exchange.apply(rows[order], counts, axis)
    back: Tensor = _Exchange.apply(function(own_rows, own_ids), counts.back, axis)  # type: ignore[arg-type, assignment]  # apply is untyped in torch
    return torch.empty_like(back).index_copy(0, order, back)


def _counted(owner: Tensor, axis: Axis) -> Counts:
    """How many rows go to each rank, and what the others say of this one."""
    sent = owner.bincount(minlength=axis.size)
    received = torch.empty_like(sent)
    comm.all_to_all(received, sent, axis.group).wait()
    return Counts(tuple(sent.tolist()), tuple(received.tolist()))
