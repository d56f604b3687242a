"""How far a tensor is from what it should be, and whether that is rounding: the rule by which programs are compared.

What should be the same differs by rounding, which is large where numbers cancel or scores are large, and so is not
known beforehand. So each tensor has two references: what it should be, and what another rounding of the same
computation makes of it, such as one in another type, or one whose every result is another in its last bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

FACTOR = 10.0
"""A difference is rounding that is at most so many times as large as what rounding is known to make: sums in another
order differ by about as much."""

SMALL = 1e-2
"""A gradient whose norm is below this share of the largest beside it is compared as if it were that large: one that is
zero in exact arithmetic (that of the bias of attention keys) is nothing but rounding."""


@dataclass(frozen=True)
class Rounding:
    """What rounding makes of tensors: `units` times what another rounding of the same computation makes, and at least
    `least`, as a part of the norm."""

    units: float
    least: float

    @staticmethod
    def of(dtype: torch.dtype, other: torch.dtype | None = None) -> Rounding:
        """Of a computation in a type, where the other rounding is that of one in another type, or in the same."""
        eps = torch.finfo(dtype).eps
        return Rounding(eps / torch.finfo(other or dtype).eps, eps)


@dataclass(frozen=True)
class Difference:
    """How much a tensor is off and how much of that may be rounding, both relative to its norm."""

    difference: float
    rounding: float

    @property
    def is_rounding(self) -> bool:
        """Whether the difference is within a small factor of rounding."""
        return self.difference <= self.tolerance

    @property
    def tolerance(self) -> float:
        """Up to what the difference counts as rounding."""
        return FACTOR * self.rounding


@dataclass(frozen=True)
class Reference:
    """What a tensor should be, and what another rounding of the same computation makes of it."""

    wanted: Tensor
    rounded: Tensor

    def beside(self, found: Tensor, rounding: Rounding, least: float = 0.0) -> Difference:
        """How far a tensor is off: infinities and NaNs are the same, or else it is infinitely far.

        Args:
            least: the norm that the tensor is taken to have at least.
        """
        size = max(finite_norm(self.wanted), least)
        both = self.rounded.isfinite() & self.wanted.isfinite()  # else nothing is known of rounding
        rounded = torch.where(both, _wide(self.rounded), _wide(self.wanted))
        known = rounding.units * distance(rounded, self.wanted, size)
        return Difference(distance(found.to(self.wanted.device), self.wanted, size), max(known, rounding.least))


def least_norm(tensors: Iterable[Tensor]) -> float:
    """The norm that each of some gradients is taken to have at least."""
    return SMALL * max(map(finite_norm, tensors), default=0.0)


def distance(found: Tensor, wanted: Tensor, size: float) -> float:
    """How much a tensor differs, as a part of `size`, the `finite_norm` of what is wanted: infinities and NaNs are the
    same, or else the difference is infinite."""
    if found.shape != wanted.shape:
        return math.inf
    found, wanted = _wide(found), _wide(wanted)
    alike = (found == wanted) | (found.isnan() & wanted.isnan())
    off = norm(torch.where(alike, 0.0, found - wanted))
    if not math.isfinite(off):
        return math.inf
    return off / size if off and size else off and math.inf


def norm(tensor: Tensor) -> float:
    """The norm of all elements."""
    return torch.linalg.vector_norm(_wide(tensor)).item()


def finite_norm(tensor: Tensor) -> float:
    """The norm of the elements that are finite: what differences of these are measured by."""
    return norm(torch.where(tensor.isfinite(), _wide(tensor), 0.0))


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)
