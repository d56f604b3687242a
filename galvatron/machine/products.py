"""Seconds of a product of matrices by its shape, on a device that computes tiles of the result.

A kernel is chosen among tiles of several sizes, and among cuts of the inner dimension whose parts are added up; the
fastest counts. Tiles are taken in turns by the multiprocessors, so that one more than they can take costs another turn,
and sizes that tiles do not divide are as good as the next that they do. A tile multiplies for as long as it is deep,
and beside that reads its edges, begins and ends: so small tiles, and shallow ones, lose more. Reading and writing the
matrices overlaps with computing. Which of the operands is transposed matters little, and is not asked.

Sizes may be fractions, of slices that an axis does not divide.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, inf

from galvatron.ir.device import SECTOR_BYTES, VECTOR_BYTES, Device, alignment

TILES = ((256, 128), (128, 256), (128, 128), (128, 64), (64, 128), (64, 64))
"""Rows and columns of the tiles that libraries for GPUs have kernels for, the largest first."""

SPLITS = (1, 2, 4, 8)
"""Parts into which the inner dimension is cut."""

SPLIT_S = 2e-6
"""What adding up the parts takes to begin."""

DEPTH = 32
"""Elements of the inner dimension that a tile takes in at once."""

SUM_BYTES = 4
"""Parts are added up in 32 bits."""

MOST_READS = 4
"""Rows of odd numbers of elements are read in 4 bytes at once, by way of registers."""

OVERLAP = 3
"""Computing and moving together take the length of (computing, moving) in this norm: the longer of the two where one is
much longer, and 2 ** (1 / 3) times it where they are equal, since neither can always go on while the other waits."""


class TiledProducts:
    """What products take on a device whose `Products` are known; without launch."""

    def __init__(self, device: Device) -> None:
        self._device, self._products = device, device.products
        self._bytes_per_s = device.memory_bytes_per_s * device.products.memory_share
        self._odd = {int(name): share for name, share in device.products.odd_share}
        self._tiles: dict[tuple[str, int], list[tuple[int, int, float]]] = {}

    def seconds(self, dtype: str, sizes: Sequence[float], traffic_bytes: float, transposed: bool = False) -> float:
        """Seconds of `count` products `(rows, inner) @ (inner, columns)` that touch so many bytes.

        Args:
            transposed: whether the first factors lie in memory the other way round (see `Kernel`).
        """
        count, rows, columns, inner = sizes
        known = self._products
        tail, even = known.tail, 1 - known.tail
        sum_s = SUM_BYTES * count * rows * columns / self._bytes_per_s
        cuts = [
            (
                split,
                DEPTH * ceil(inner / (split * DEPTH)) + known.ramp,
                SPLIT_S + (split + 1) * sum_s if split > 1 else 0.0,
            )
            for split in SPLITS
        ]
        computing_s = inf
        aligned_bytes = min(alignment(dtype, length) for length in (columns, inner, *((rows,) if transposed else ())))
        for height, width, element_s in self._tiles_of(dtype, aligned_bytes):
            whole = count * ceil(rows / height) * ceil(columns / width) / known.multiprocessors
            for split, depth, adding_s in cuts:
                turns = whole * split
                taken = even * turns + tail * ceil(turns) if turns > 1 else 1.0
                seconds = taken * depth * element_s + adding_s
                if seconds < computing_s:
                    computing_s = seconds
        return known.start_s + together(computing_s, traffic_bytes / self._bytes_per_s)

    def _tiles_of(self, dtype: str, aligned_bytes: int) -> list[tuple[int, int, float]]:
        """Height and width of each kind of tile, and its seconds for an element of the inner dimension."""
        if (found := self._tiles.get((dtype, aligned_bytes))) is None:
            known = self._products
            odd_share = self._odd.get(aligned_bytes)
            reads = 1.0 if odd_share else reads_of(aligned_bytes)
            flop_per_s = self._device.flop_per_s(dtype) * known.tile_share / known.multiprocessors * (odd_share or 1.0)
            tallest, widest = TILES[0]
            best = 1 + known.edge * (1 / tallest + 1 / widest)
            found = self._tiles[dtype, aligned_bytes] = [
                (h, w, 2 * h * w / flop_per_s * (1 + known.edge * reads * (1 / h + 1 / w)) / best) for h, w in TILES
            ]
        return found


def together(computing_s: float, moving_s: float) -> float:
    """Seconds of a kernel that computes and moves at the same time."""
    return (computing_s**OVERLAP + moving_s**OVERLAP) ** (1 / OVERLAP)


def reads_of(aligned_bytes: int) -> float:
    """How many reads a tile's edges take, relative to those of matrices whose rows are aligned."""
    if aligned_bytes >= SECTOR_BYTES:
        return 1.0
    return min(MOST_READS, max(1.0, VECTOR_BYTES / aligned_bytes) * 1.5)


def best_flop_per_s(device: Device, dtype: str) -> float:
    """What large products reach in an element type, which the use of a device is told by."""
    return device.flop_per_s(dtype)
