"""Kernels by what they are: the work that they do, and the bytes that they touch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from galvatron.ir.ops.operator import Moves
from galvatron.ir.ops.table import kernel_moves
from galvatron.ir.ops.work import Work

ACCUMULATION_PASSES = 3
"""Times a micro-batch moves a gradient's bytes to add it up: reads of old and new, write of the sum."""


@dataclass(frozen=True)
class Kernel:
    """One kernel: its name, the element type it computes in, its work, and the bytes that it reads and writes.

    A kernel without work is bound by memory. Of a product `transposed` says that its first factor is a matrix that lies
    in memory the other way round, with rows as long as the result has rows: as for gradients of weights.
    """

    name: str
    dtype: str
    traffic_bytes: float
    work: Work | None = None
    transposed: bool = False

    @property
    def moves(self) -> Moves:
        """How it goes through memory."""
        return kernel_moves(self.name)

    @property
    def backward(self) -> bool:
        """Whether it makes gradients."""
        return "backward" in self.name

    @property
    def flop(self) -> float:
        """Floating-point operations of its work."""
        return self.work.flop if self.work is not None else 0.0


class KernelAt(Protocol):
    """A kernel at any local batch size; equal ones are the same at each."""

    def at(self, batch: float) -> Kernel:
        """The kernel at a local batch size."""
        ...

    def __hash__(self) -> int: ...


def touched_bytes(operands: Sequence[float], results: Sequence[float], *, gathers: bool) -> float:
    """The bytes that a kernel reads and writes, from those of its operands and results.

    Args:
        gathers: whether it reads of its first operand only as much as it writes.
    """
    if gathers and operands:
        operands = (results[0], *operands[1:])
    return sum(operands) + sum(results)
