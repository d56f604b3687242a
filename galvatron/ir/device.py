"""Devices: what one accelerator, or one rank's share of a processor, holds and does.

A device says how long kernels take in two ways. Its *figures* (rates, and the few numbers that tell what a kernel of
some shape reaches of them) are enough for any kernel: presets have these. What was *measured* on it takes their place
where it says anything.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import prod
from typing import get_args

from galvatron.errors import ClusterError, did_you_mean
from galvatron.ir import limits
from galvatron.ir.ops.operator import Moves
from galvatron.ir.records import Rows, Samples, Table
from galvatron.ir.types import DTYPE_BYTES

COLUMNS = {"products": 5, "moving": 2, "attention": 4, "layers": 2}
"""Numbers of a row of each table of `Measured`, the last of them seconds."""

LONGEST_S = 1e4
"""Of a kernel that was measured."""

ODD_BYTES = ("2", "4", "8")
"""Alignments of rows that are too small for the instructions that feed a GPU's products."""

VECTOR_BYTES = 16
"""What one thread of a GPU reads at once, if rows begin at multiples of it."""

SECTOR_BYTES = 32
"""What memory gives at once: rows that begin elsewhere touch half as many more of them."""

MOST = 1e6
"""Of what describes how products are computed."""

_ATTENTION = re.compile(r"(?:forward|backward)\.[1-9][0-9]{0,4}")


def alignment(dtype: str, length: float) -> int:
    """Bytes of which the beginning of each row of so many elements is a multiple, `SECTOR_BYTES` at the most.

    A fraction stands for a size that is padded.
    """
    row_bytes = round(length) * DTYPE_BYTES[dtype]
    if abs(round(length) - length) > 1e-6 or row_bytes % SECTOR_BYTES == 0:
        return SECTOR_BYTES
    return row_bytes & -row_bytes


@dataclass(frozen=True)
class Products:
    """How a device computes products of matrices, as far as that decides what a shape reaches of the best rate: in
    tiles of the result, one after another on each multiprocessor (`galvatron.machine.products`).

    A device of which nothing is known (no `multiprocessors`) computes every shape at its best rate.

    Attributes:
        multiprocessors: of which each works on a tile at a time.
        tile_share: of the best rate, what they reach on the largest tiles.
        edge: elements of its inner dimension that a tile takes in longer for its edges to be read, relative to their
            length: what smaller tiles lose.
        ramp: elements of the inner dimension that take as long as beginning and ending a tile.
        tail: the share of a last, incomplete turn of tiles that is waited for; the rest is made up for by others.
        start_s: what a product takes longer to begin than any kernel.
        memory_share: of the memory bandwidth, what reading and writing whole matrices reaches.
        odd_share: `"2"`, `"4"`, `"8"` → the share of the best rate that is left of products of which some rows begin at
            multiples of no more than so many bytes; without any they only read more.
    """

    multiprocessors: int = 0
    tile_share: float = 1.0
    edge: float = 0.0
    ramp: float = 0.0
    tail: float = 1.0
    start_s: float = 0.0
    memory_share: float = 1.0
    odd_share: Table = ()

    def check(self) -> None:
        """Checks that shares are shares, and that nothing is negative.

        Raises:
            ClusterError: names the field.
        """
        for name in ("tile_share", "memory_share", "tail"):
            if not 0 < getattr(self, name) <= 1:
                raise ClusterError(f"cluster field {name!r} is a share, not {getattr(self, name)}")
        for name, share in self.odd_share:
            if name not in ODD_BYTES or not 0 < share <= 1:
                raise ClusterError(f"cluster field 'odd_share.{name}' is {share}: a share by one of {ODD_BYTES}")
        for name in ("multiprocessors", "edge", "ramp", "start_s"):
            if not 0 <= getattr(self, name) <= MOST:
                raise ClusterError(f"cluster field {name!r} is {getattr(self, name)}: no device is like that")


@dataclass(frozen=True)
class Measured:
    """Seconds of kernels, measured on a device: of one call among many in a row, so that launches are included as far
    as they are not hidden. Medians. Ranks that share the device (cores of one processor) are measured all at once.

    Sizes of each table are a grid: every combination of the sizes that occur in it, of which the larger ones may be
    left out where they take too long. Between the sizes seconds are a power of each, beyond the last they go on in
    proportion, below the first they are those of the first; a size that takes less than a smaller one is noise. Four to
    six sizes, a factor of 4 to 8 apart, are enough.

    Attributes:
        products: element type → rows (count, rows, columns, inner, seconds): `count` products `(rows, inner) @ (inner,
            columns)` in one call, which for a count of 1 is `mm` of two contiguous matrices, else `bmm`.
        moving: class of kernels that memory bounds (`Operator.moves`), or `class.type` where the element type matters
            → rows (bytes, seconds), the bytes those that it reads and writes.
        attention: `type.direction` or `type.causal.direction`, the direction `forward` or `backward` → rows (count,
            length, width, seconds): `count` heads in all samples, `length` of queries and keys, `width` of a head.
        layers: `fingerprint.direction` of what a rank runs of a layer class (`ir.fingerprints`) → rows (samples,
            seconds): all its kernels together, those of its collectives excepted.
    """

    products: Samples = ()
    moving: Samples = ()
    attention: Samples = ()
    layers: Samples = ()

    def find(self, table: str, *names: str) -> Rows | None:
        """The rows of the first of these names that a table has."""
        found = dict(getattr(self, table))
        return next((found[name] for name in names if name in found), None)

    def check(self) -> None:
        """Checks that tables have rows of positive numbers, a seconds last.

        Raises:
            ClusterError: names the table.
        """
        for table, columns in COLUMNS.items():
            for name, rows in getattr(self, table):
                field = f"cluster field '{table}.{name}'"
                if not 1 <= len(rows) <= limits.MEASURED or any(len(row) != columns for row in rows):
                    raise ClusterError(f"{field} must have 1 to {limits.MEASURED} rows of {columns} numbers")
                if any(min(row) <= 0 or max(row) > limits.SIZE or row[-1] > LONGEST_S for row in rows):
                    raise ClusterError(f"{field} has a size or a time that nothing measured has")
                points = prod(len(set(sizes)) for sizes in list(zip(*rows, strict=True))[:-1])
                if points > limits.MEASURED_GRID:
                    raise ClusterError(f"{field} is on a grid of {points} points, at most {limits.MEASURED_GRID}")


@dataclass(frozen=True)
class Device:
    """One accelerator: memory in bytes, best matmul rate per element type in FLOP/s, memory bandwidth in bytes/s.

    Attributes:
        kernel_launch_s: what a kernel takes on the device however little it does.
        kind: torch's name of the type of device, which decides what kernels its operators run: `"cuda"` or `"cpu"`.
        host_op_s: the time of the process between two kernels that it launches in eager mode, with autograd: no step
            takes less than that for each of its kernels, whatever the device does meanwhile.
        host_backward_s: the same in a backward, where autograd runs through its nodes; `host_op_s` if it is not known.
        host_view_s: what the process takes for an op that moves nothing.
        reserved_bytes: what of the memory is taken before a program's first tensor: the context of the device, and the
            buffers of the first communicators.
        workspace_bytes: what libraries keep of the memory that tensors have, once the first products have run.
        moving_share: class of kernels that memory bounds (`Operator.moves`), or `class.backward` for those of
            gradients where these differ → what large ones reach of the bandwidth; 1 for others.
        attention_share: `direction.width`, the direction `forward` or `backward`, of heads so wide → what attention of
            long sequences in one kernel reaches of the best rate of products; without any, as a product.
        curves: the name of what the package knows from measuring a device like this (`galvatron.ir.measurements`):
            it counts where nothing was measured on this one.
    """

    name: str
    memory_bytes: int
    matmul_flop_per_s: Table
    memory_bytes_per_s: float
    kernel_launch_s: float = 0.0
    kind: str = "cuda"
    host_op_s: float = 0.0
    host_backward_s: float | None = None
    host_view_s: float = 0.0
    moving_share: Table = ()
    attention_share: Table = ()
    products: Products = Products()
    measured: Measured = Measured()
    reserved_bytes: int = 0
    workspace_bytes: int = 0
    curves: str = ""

    def flop_per_s(self, dtype: str) -> float:
        """The matmul rate for an element type; a type without a rate of its own runs at the slowest one."""
        return dict(self.matmul_flop_per_s).get(dtype) or min(rate for _, rate in self.matmul_flop_per_s)

    def check(self) -> None:
        """Checks what is said of kernels.

        Raises:
            ClusterError: names the field.
        """
        for name, _ in self.moving_share:
            if (kind := name.removesuffix(".backward")) not in get_args(Moves):
                raise ClusterError(f"cluster field 'moving_share.{name}': {did_you_mean(kind, get_args(Moves))}")
        for name, _ in self.attention_share:
            if not _ATTENTION.fullmatch(name):
                raise ClusterError(f"cluster field 'attention_share.{name}' is not as in 'forward.128'")
        for field in ("moving_share", "attention_share"):
            for name, share in getattr(self, field):
                if not 0 < share <= 1:
                    raise ClusterError(f"cluster field '{field}.{name}' is a share, not {share}")
        self.products.check()
        self.measured.check()
