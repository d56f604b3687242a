"""Cases: the calls that a profile measures, each with what it is called and how it is set up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle
from math import prod

import torch
from torch import Tensor

from galvatron.ir.records import Table
from galvatron.ir.types import TORCH_DTYPE_NAMES
from galvatron.profiler.meter import Call

ROTATED_BYTES = 32 * 2**20
"""Operands of a kernel take turns that have so much memory together: what a kernel reads in a step lies seldom in a
cache as it would if it were called again and again on the same tensors."""

_MOST_TURNS = 8


@dataclass(frozen=True)
class Case:
    """A call to be measured.

    Attributes:
        name, how, dtype, sizes: see `Measurement`.
        amount: what its time grows with, such as FLOP or bytes, among the cases that differ in sizes alone.
        memory_bytes: that its tensors need.
        prepare: sets it up on this rank's device.
        calls: of what is measured, in one call of what `prepare` gives.
        in_step: ranks wait for each other in it.
        on_host: the time of the process counts, not that of the device behind it.
    """

    name: str
    how: str
    dtype: str
    sizes: Table
    amount: float
    memory_bytes: float
    prepare: Callable[[], Call]
    calls: int = 1
    in_step: bool = False
    on_host: bool = False

    @property
    def key(self) -> tuple[str, str, str, Table]:
        """That of its measurement."""
        return self.name, self.how, self.dtype, self.sizes

    @property
    def series(self) -> tuple[object, ...]:
        """What it has in common with cases that are larger or smaller."""
        return self.name, self.how, self.dtype


def torch_type(dtype: str) -> torch.dtype:
    return getattr(torch, TORCH_DTYPE_NAMES[dtype])


_RANDOM = 2**18
"""Numbers that are drawn; what is larger repeats them, since drawing takes longer than most kernels."""


def random_tensor(shape: tuple[int, ...], dtype: str, device: torch.device) -> Tensor:
    """Not constants: a GPU multiplies those up to a tenth faster, since less of it switches."""
    count = prod(shape)
    drawn = torch.randn(min(count, _RANDOM), device=device).to(torch_type(dtype))
    return drawn.repeat(-(-count // len(drawn)))[:count].view(shape)


def in_turn(function: Callable[..., object], first: tuple[Tensor, ...]) -> Call:
    """A call of a function on operands, or copies of them, that change from call to call."""
    turns = turns_of(sum(tensor.nbytes for tensor in first))
    following = cycle([first, *(tuple(map(_copied, first)) for _ in range(turns - 1))]).__next__
    return lambda: function(*following())


def turns_of(each_bytes: int) -> int:
    """How many operands of so many bytes take turns, so that none is in a cache because it has just been there."""
    return max(1, min(_MOST_TURNS, ROTATED_BYTES // max(1, each_bytes)))


def _copied(x: Tensor) -> Tensor:
    return x.detach().clone().requires_grad_(x.requires_grad)


def sizes_of(**sizes: int) -> Table:
    """Sizes by name."""
    return tuple((name, float(size)) for name, size in sizes.items())
