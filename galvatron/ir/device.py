"""Devices: what one accelerator, or one rank's share of a processor, holds and does.

A device says how long kernels take in two ways. Its *figures* (rates, and the few numbers that tell what a kernel of
some shape reaches of them) are enough for any kernel: presets have these. What was *measured* on it takes their place
where it says anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from galvatron.errors import ClusterError, did_you_mean
from galvatron.ir import limits
from galvatron.ir.ops.operator import Moves
from galvatron.ir.records import Rows, Samples, Table

COLUMNS = {"products": 5, "moving": 2, "attention": 4}
"""Numbers of a row of each table of `Measured`, the last of them seconds."""

LONGEST_S = 1e4
"""Of a kernel that was measured."""


@dataclass(frozen=True)
class Products:
    """How a device computes products of matrices, as far as that decides what a shape reaches of the best rate.

    A device of which nothing is known (no `multiprocessors`) computes every shape at its best rate.

    Attributes:
        multiprocessors: what works on one tile of a result at a time each; tiles that are left over wait for a turn of
            their own.
    """

    multiprocessors: int = 0


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
    """

    products: Samples = ()
    moving: Samples = ()
    attention: Samples = ()

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


@dataclass(frozen=True)
class Device:
    """One accelerator: memory in bytes, best matmul rate per element type in FLOP/s, memory bandwidth in bytes/s.

    Attributes:
        kernel_launch_s: what a kernel takes on the device however little it does.
        kind: torch's name of the type of device, which decides what kernels its operators run: `"cuda"` or `"cpu"`.
        host_op_s: the time of the process between two kernels that it launches in eager mode, with autograd: no step
            takes less than that for each of its kernels, whatever the device does meanwhile.
        moving_share: class of kernels that memory bounds (`Operator.moves`) → what large ones reach of the bandwidth;
            1 for others.
    """

    name: str
    memory_bytes: int
    matmul_flop_per_s: Table
    memory_bytes_per_s: float
    kernel_launch_s: float = 0.0
    kind: str = "cuda"
    host_op_s: float = 0.0
    moving_share: Table = ()
    products: Products = Products()
    measured: Measured = Measured()

    def flop_per_s(self, dtype: str) -> float:
        """The matmul rate for an element type; a type without a rate of its own runs at the slowest one."""
        return dict(self.matmul_flop_per_s).get(dtype) or min(rate for _, rate in self.matmul_flop_per_s)

    def check(self) -> None:
        """Checks what is said of kernels.

        Raises:
            ClusterError: names the field.
        """
        for name, share in self.moving_share:
            if name not in get_args(Moves):
                raise ClusterError(f"cluster field 'moving_share': {did_you_mean(name, get_args(Moves))}")
            if not 0 < share <= 1:
                raise ClusterError(f"cluster field 'moving_share.{name}' is a share, not {share}")
        self.measured.check()
