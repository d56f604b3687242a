"""Boxes of a tensor: which elements of the whole a rank's part has, and where in its memory.

A rank has a range of the flattened slice that the cuts of a plan leave it. In the coordinates of the slice the range is
a few boxes, each of them one stretch of memory; each dimension of the slice is a few runs of that of the whole. So a
part is a list of boxes of the whole tensor, and two plans have in common what their boxes have in common.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from galvatron.runtime.pieces import Piece


@dataclass(frozen=True)
class Box:
    """The elements of a tensor from `at` on, `sizes` of them along each dimension."""

    at: tuple[int, ...]
    sizes: tuple[int, ...]

    @property
    def count(self) -> int:
        """The number of elements."""
        return math.prod(self.sizes)

    def meet(self, other: Box) -> Box | None:
        """What both have."""
        at = tuple(map(max, self.at, other.at))
        ends = [min(a + n, b + m) for a, n, b, m in zip(self.at, self.sizes, other.at, other.sizes, strict=True)]
        sizes = tuple(end - start for start, end in zip(at, ends, strict=True))
        return Box(at, sizes) if all(size > 0 for size in sizes) else None

    def place_of(self, at: Sequence[int]) -> int:
        """Which of the elements, counted from 0, lies there."""
        place = 0
        for start, size, here in zip(self.at, self.sizes, at, strict=True):
            place = place * size + here - start
        return place

    def cut(self, whole: Tensor, box: Box) -> Tensor:
        """A box inside this one, as a view of this one's elements."""
        for dim, (start, size) in enumerate(zip(box.at, box.sizes, strict=True)):
            whole = whole.narrow(dim, start - self.at[dim], size)
        return whole


def whole_box(shape: Sequence[int]) -> Box:
    """All of a tensor."""
    return Box((0,) * len(shape), tuple(shape))


@dataclass(frozen=True)
class Patch:
    """A box of the whole tensor in the memory of a part: there lies, from `offset` on, a tensor of the shape of
    `around`, which has it as the box `inside`.
    """

    box: Box
    offset: int
    around: Box
    inside: Box

    def of(self, flat: Tensor) -> Tensor:
        """The elements, as a view of the part."""
        stretch = flat.narrow(0, self.offset, self.around.count).view(self.around.sizes)
        return self.around.cut(stretch, self.inside)


def patches_of(piece: Piece) -> list[Patch]:
    """The boxes that a rank has, none empty."""
    shape = piece.spec.local_shape()
    runs = [_runs(piece, dim) for dim in range(len(shape))]
    found: list[Patch] = []
    offset = 0
    for around in _stretches(shape, piece.begin, piece.end):
        sides = [_overlaps(own, start, size) for own, start, size in zip(runs, around.at, around.sizes, strict=True)]
        for corner in itertools.product(*sides):
            sizes = tuple(size for _, _, size in corner)
            box = Box(tuple(there for _, there, _ in corner), sizes)
            found.append(Patch(box, offset, around, Box(tuple(here for here, _, _ in corner), sizes)))
        offset += around.count
    return found


_Run = tuple[int, int, int]
"""Elements of a dimension that follow one another: the first in the slice, the first in the whole, how many."""


def _runs(piece: Piece, dim: int) -> list[_Run]:
    cuts = [(axis, replace(place, dim=0)) for axis, place in piece.spec.sharded if place.dim == dim]
    size = piece.spec.shape[dim]
    if not cuts:
        return [(0, 0, size)] if size else []
    numbers = torch.arange(1, size + 1)  # 0 is what fills up a slice
    for axis, place in cuts:
        numbers = place.take(numbers, axis)
    found: list[_Run] = []
    for here, number in enumerate(numbers.tolist()):
        if number == 0:
            continue
        if found and (last := found[-1])[0] + last[2] == here and last[1] + last[2] == number - 1:
            found[-1] = (last[0], last[1], last[2] + 1)
        else:
            found.append((here, number - 1, 1))
    return found


def _overlaps(runs: Sequence[_Run], start: int, size: int) -> list[_Run]:
    """What of the runs lies in a stretch of the slice."""
    found: list[_Run] = []
    for here, there, length in runs:
        begin, end = max(here, start), min(here + length, start + size)
        if end > begin:
            found.append((begin, there + begin - here, end - begin))
    return found


def _stretches(shape: Sequence[int], begin: int, end: int) -> Iterator[Box]:
    """A range of a flattened tensor as boxes of it, in order; each is one stretch of it."""
    if end <= begin:
        return
    if not shape:
        yield Box((), ())
        return
    row = math.prod(shape[1:])
    first, last = -(-begin // row), end // row
    if first > last:  # inside of one row
        yield from _in_row(shape, last, begin, end)
        return
    if begin < first * row:
        yield from _in_row(shape, first - 1, begin, first * row)
    if first < last:
        yield Box((first, *(0 for _ in shape[1:])), (last - first, *shape[1:]))
    if last * row < end:
        yield from _in_row(shape, last, last * row, end)


def _in_row(shape: Sequence[int], number: int, begin: int, end: int) -> Iterator[Box]:
    start = number * math.prod(shape[1:])
    for box in _stretches(shape[1:], begin - start, end - start):
        yield Box((number, *box.at), (1, *box.sizes))
