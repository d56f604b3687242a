"""Rows that go to the ranks of what they choose, and come back: expert parallelism.

Each rank of an axis has rows of its own, and some of what they choose. How many rows go where is data, so ranks first
tell each other; a rank that gets no rows, or has none, takes part all the same.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from galvatron.routes import choices_that_come, rows_by_rank
from galvatron.runtime import comm
from galvatron.runtime.mesh import Axis
from galvatron.runtime.started import UnderWay


@dataclass(frozen=True)
class Route:
    """How rows go to the ranks of an axis.

    Attributes:
        order: this rank's rows, by the rank that they go to.
        sent, received: how many rows go to each rank, and come from each.
        chosen: what the rows choose that have come.
    """

    order: Tensor
    sent: tuple[int, ...]
    received: tuple[int, ...]
    chosen: Tensor

    def there(self, rows: Tensor, axis: Axis) -> UnderWay:
        """The rows of all ranks that come to this one."""
        return _sent(rows[self.order], self.sent, self.received, axis, lambda found: found)

    def back(self, rows: Tensor, axis: Axis) -> UnderWay:
        """This rank's rows, of what is where they went."""

        def in_order(found: Tensor) -> Tensor:
            return torch.empty_like(found).index_copy_(0, self.order, found)

        return _sent(rows.contiguous(), self.received, self.sent, axis, in_order)


_routes: MutableMapping[Tensor, dict[tuple[int, int], Route]] = WeakIdKeyDictionary()
"""By what they choose, on which axis, where rows go: they go the same way as often as they do."""


def route_of(chosen: Tensor, axis: Axis, size: int) -> Route:
    """How rows go to the ranks of what they choose.

    Args:
        chosen: [rows], whole numbers. One that is none of `size` stays on its rank.
        size: how many there are to choose, of which each rank has an equal part.
    """
    known = _routes.setdefault(chosen, {})
    key = id(axis.group), size
    if key not in known:
        known[key] = _found(chosen, axis, size)
    return known[key]


def _found(chosen: Tensor, axis: Axis, size: int) -> Route:
    order, sent = rows_by_rank(chosen, size, axis.size, axis.index)
    received = torch.empty_like(sent)
    comm.all_to_all(received, sent, axis.group).wait()
    there, here = torch.stack([sent.sum(1), received.sum(1)]).tolist()
    return Route(order, tuple(there), tuple(here), choices_that_come(received, axis.index, sum(here)))


def _sent(
    rows: Tensor,
    sent: tuple[int, ...],
    received: tuple[int, ...],
    axis: Axis,
    laid_out: Callable[[Tensor], Tensor],
) -> UnderWay:
    found = rows.new_empty(sum(received), *rows.shape[1:])
    handle = comm.all_to_all(found, rows, axis.group, received_parts=received, sent_parts=sent)
    return UnderWay(handle, lambda: laid_out(found))
