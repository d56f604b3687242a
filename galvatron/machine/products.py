"""Seconds of a product of matrices by its shape, on a device that computes tiles of the result.

A kernel is chosen among tiles of several sizes, and among cuts of the inner dimension whose parts are added up; the
fastest counts. Tiles are taken in turns by the multiprocessors, so that one more than they can take costs another turn,
and sizes that tiles do not divide are as good as the next that they do. A tile multiplies for as long as it is deep,
and beside that reads its edges, begins and ends: so small tiles, and shallow ones, lose more. Reading and writing the
matrices overlaps with computing. Which of the operands is transposed matters little, and is not asked.

Sizes may be fractions, of slices that an axis does not divide.
"""

from __future__ import annotations

from math import ceil, inf

from galvatron.ir.device import Device
from galvatron.ir.types import DTYPE_BYTES

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

VECTOR_BYTES = 16
"""What one thread reads at once, if rows begin at multiples of it."""

SECTOR_BYTES = 32
"""What memory gives at once: rows that begin elsewhere touch half as many more of them."""

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
        self._tiles: dict[tuple[str, float], list[tuple[int, int, float]]] = {}

    def seconds(
        self, dtype: str, count: float, rows: float, columns: float, inner: float, traffic_bytes: float
    ) -> float:
        """Seconds of `count` products `(rows, inner) @ (inner, columns)` that touch so many bytes."""
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
        for height, width, element_s in self._tiles_of(dtype, reads(dtype, columns, inner)):
            whole = count * ceil(rows / height) * ceil(columns / width) / known.multiprocessors
            for split, depth, adding_s in cuts:
                turns = whole * split
                taken = even * turns + tail * ceil(turns) if turns > 1 else 1.0
                seconds = taken * depth * element_s + adding_s
                if seconds < computing_s:
                    computing_s = seconds
        return known.start_s + together(computing_s, traffic_bytes / self._bytes_per_s)

    def _tiles_of(self, dtype: str, reads: float) -> list[tuple[int, int, float]]:
        """Height and width of each kind of tile, and its seconds for an element of the inner dimension."""
        if (found := self._tiles.get((dtype, reads))) is None:
            known = self._products
            flop_per_s = self._device.flop_per_s(dtype) * known.tile_share / known.multiprocessors
            tallest, widest = TILES[0]
            best = 1 + known.edge * (1 / tallest + 1 / widest)
            found = self._tiles[dtype, reads] = [
                (h, w, 2 * h * w / flop_per_s * (1 + known.edge * reads * (1 / h + 1 / w)) / best) for h, w in TILES
            ]
        return found


def together(computing_s: float, moving_s: float) -> float:
    """Seconds of a kernel that computes and moves at the same time."""
    return (computing_s**OVERLAP + moving_s**OVERLAP) ** (1 / OVERLAP)


def reads(dtype: str, columns: float, inner: float) -> float:
    """How many reads a tile's edges take, relative to those of matrices whose rows are aligned.

    Rows of the operands are `inner` or `columns` long (`rows` in some gradients, but the number of rows is most often
    one of samples, which no row is long). A fraction stands for a size that is padded.
    """
    return max(_reads(DTYPE_BYTES[dtype], columns), _reads(DTYPE_BYTES[dtype], inner))


def _reads(size_bytes: int, length: float) -> float:
    row_bytes = round(length) * size_bytes
    if abs(round(length) - length) > 1e-6 or row_bytes % SECTOR_BYTES == 0:
        return 1.0
    aligned_bytes = row_bytes & -row_bytes
    return min(MOST_READS, max(1.0, VECTOR_BYTES / aligned_bytes) * 1.5)
