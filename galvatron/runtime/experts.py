"""Rows that go to the ranks of what they choose, and come back: expert parallelism.

Each rank of an axis has rows of its own, and some of what they choose. How many rows go where is data, so ranks first
tell each other, of all rows at once that they know of by then. A rank that gets no rows, or has none, takes part all
the same.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping, Sequence
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
    find_routes((chosen,), axis, size)
    return _routes[chosen][id(axis.group), size]


def find_routes(chosen: Sequence[Tensor], axis: Axis, size: int) -> None:
    """Finds how rows go to the ranks of what each of some tensors chooses, with one message for all that are new; see
    `route_of`."""
    key = id(axis.group), size
    new = [ids for ids in chosen if key not in _routes.setdefault(ids, {})]
    if not new:
        return
    orders, counts = zip(*(rows_by_rank(ids, size, axis.size, axis.index) for ids in new), strict=True)
    sent = torch.stack(counts, 1)
    received = torch.empty_like(sent)
    comm.all_to_all(received, sent, axis.group).wait()
    there, here = torch.stack([sent.sum(2), received.sum(2)]).transpose(1, 2).tolist()
    for i, ids in enumerate(new):
        chosen_here = choices_that_come(received[:, i], axis.index, sum(here[i]))
        _routes[ids][key] = Route(orders[i], tuple(there[i]), tuple(here[i]), chosen_here)


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
