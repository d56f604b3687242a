"""Slices of a dimension: which elements each rank of an axis has, and tensors cut and joined by them.

A dimension is seen as `(outer, n, rest)`, of which the axis cuts `n`. Plain slices are contiguous in `n`. Folded ones
have two pieces: of twice as many as there are ranks, one from the front and its mirror image from the back. Nothing
here communicates.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from galvatron.errors import GalvatronError
from galvatron.runtime.mesh import Axis


@dataclass(frozen=True)
class Sharded:
    """A slice of `dim`, seen as `(outer, axis size, rest)` with the middle factor split over the axis.

    A `folded` one has two pieces of the middle factor, `i` and `2n - 1 - i` on rank `i` of `n`. A `padded` dimension
    need not divide: slices are rounded up, and the last rank's ends in zeros that nobody sees.
    """

    dim: int
    outer: int = 1
    padded: bool = False
    folded: bool = False

    def pieces(self, ranks: int) -> int:
        """Into how many pieces each of the `outer` stretches is cut."""
        return 2 * ranks if self.folded else ranks

    def take(self, full: Tensor, axis: Axis) -> Tensor:
        """This rank's slice of a tensor, a view where strides allow."""
        if self.padded:
            return self._take_padded(full, axis)
        if not self.folded:
            return self.split(full, axis.size)[axis.index]
        # The two pieces alone: of a tensor in a file no more is read than what is taken.
        pieces = replace(self, folded=False).split(full, 2 * axis.size)
        halves = (pieces[i].unflatten(self.dim, (self.outer, -1)) for i in self._own_pieces(axis.index, axis.size))
        return torch.cat(list(halves), self.dim + 1).flatten(self.dim, self.dim + 1)

    def _own_pieces(self, rank: int, ranks: int) -> tuple[int, ...]:
        return (rank, 2 * ranks - 1 - rank) if self.folded else (rank,)

    def _take_padded(self, full: Tensor, axis: Axis) -> Tensor:
        dim = self.dim
        part = -(-full.size(dim) // axis.size)
        start = min(axis.index * part, full.size(dim))
        own = full.narrow(dim, start, min(part, full.size(dim) - start))
        filler = part - own.size(dim)
        return F.pad(own, [0, 0] * (full.dim() - 1 - dim) + [0, filler]) if filler else own

    def split(self, full: Tensor, ranks: int) -> Tensor:
        """The slices of all ranks, stacked in front: a view where strides allow.

        Raises:
            GalvatronError: the dimension does not divide.
        """
        dim, pieces = self.dim, self.pieces(ranks)
        if full.size(dim) % (self.outer * pieces):
            raise GalvatronError(
                f"dimension {dim} of shape {tuple(full.shape)} does not split into {self.outer} x {pieces} pieces"
            )
        parts = full.unflatten(dim, (self.outer, pieces, full.size(dim) // (self.outer * pieces)))
        if not self.folded:
            return parts.movedim(dim + 1, 0).flatten(dim + 1, dim + 2)
        front, back = parts.narrow(dim + 1, 0, ranks), parts.flip(dim + 1).narrow(dim + 1, 0, ranks)
        return torch.stack([front, back], dim + 2).movedim(dim + 1, 0).flatten(dim + 1, dim + 3)

    def join(self, parts: Tensor) -> Tensor:
        """The inverse of `split`: `parts[i]` is the slice of rank `i`."""
        dim = self.dim
        rest = parts.size(dim + 1) // self.outer
        if not self.folded:
            return parts.unflatten(dim + 1, (self.outer, rest)).movedim(0, dim + 1).flatten(dim, dim + 2)
        halves = parts.unflatten(dim + 1, (self.outer, 2, rest // 2)).movedim(0, dim + 1)
        front, back = halves.unbind(dim + 2)
        return torch.cat([front, back.flip(dim + 1)], dim + 1).flatten(dim, dim + 2)

    def cells(self, rank: int, ranks: int, count: int) -> list[int]:
        """Which of `count` equal parts of the dimension a rank has, in its order."""
        pieces = self.pieces(ranks)
        rest = count // (self.outer * pieces)
        own = self._own_pieces(rank, ranks)
        return [(o * pieces + p) * rest + r for o in range(self.outer) for p in own for r in range(rest)]


def in_cutting_order(places: Iterable[tuple[Axis, Sharded]]) -> tuple[tuple[Axis, Sharded], ...]:
    """Slices of a tensor in the order in which all of it is cut into them: `outer` counts slices of the whole, so that
    of two factors of one dimension the inner is cut first; of one factor the outer axis has the larger part."""
    return tuple(sorted(places, key=lambda cut: -cut[1].outer))


@dataclass(frozen=True)
class Route:
    """How one rank takes part in an exchange that cuts the same dimension anew, in equal cells of it.

    Cells of the old slice leave in the order `sent`, `sent_counts` of them to each rank; from each come
    `received_counts`, and the new slice has what came in the order `received`.
    """

    sent: tuple[int, ...]
    sent_counts: tuple[int, ...]
    received: tuple[int, ...]
    received_counts: tuple[int, ...]


@lru_cache(maxsize=64)
def route(source: Sharded, target: Sharded, rank: int, ranks: int) -> Route:
    """The route of a rank from its slice `source` to its slice `target` of one dimension."""
    count = math.lcm(*(place.outer * place.pieces(ranks) for place in (source, target)))
    holder, reader = (
        {cell: r for r in range(ranks) for cell in place.cells(r, ranks, count)} for place in (source, target)
    )
    old, new = source.cells(rank, ranks, count), target.cells(rank, ranks, count)
    # Both sides know the order of what goes from one rank to another: that of the dimension.
    leaving = sorted(range(len(old)), key=lambda i: (reader[old[i]], old[i]))
    arriving = {cell: i for i, cell in enumerate(sorted(new, key=lambda cell: (holder[cell], cell)))}
    to, by = Counter(reader[cell] for cell in old), Counter(holder[cell] for cell in new)
    return Route(
        tuple(leaving),
        tuple(to[r] for r in range(ranks)),
        tuple(arriving[cell] for cell in new),
        tuple(by[r] for r in range(ranks)),
    )


def in_order(x: Tensor, dim: int, order: tuple[int, ...]) -> Tensor:
    """The equal parts of a dimension, as many as the order has, in that order."""
    parts = x.unflatten(dim, (len(order), x.size(dim) // len(order)))
    return parts.index_select(dim, torch.tensor(order, device=x.device)).flatten(dim, dim + 1)
