"""A value of a local graph seen whole, and that it is where an op cannot read or make it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from galvatron.ir.layout import BROADCAST, REPLICATE, Layout, Partial, Placement, Replicate
from galvatron.ir.types import TensorType


class Misplaced(Exception):
    """An op cannot run on values so placed; the message says why, which alone is `why`, and what would mend it."""

    def __init__(self, why: str, mending: str = "") -> None:
        super().__init__(why + mending)
        self.why = why


@dataclass(frozen=True)
class Placed:
    """A value of a local graph seen whole: its global type, a placement per axis, whether it has a gradient, and
    whether it is state, which the class declares and no op makes."""

    name: str
    type: TensorType
    layout: Layout
    differentiable: bool
    is_state: bool = False

    def on(self, axis: int) -> Placement:
        """The placement on an axis, `R` for any `R'` without a gradient."""
        placement = self.layout[axis]
        return REPLICATE if placement == BROADCAST and not self.differentiable else placement

    def takes(self, axis: int, wanted: Replicate | Partial) -> bool:
        """Whether the value is placed on an axis as is wanted."""
        return self.on(axis) == (REPLICATE if wanted == BROADCAST and not self.differentiable else wanted)

    def moved(self, axis: int, placement: Placement) -> Placed:
        """The same value, placed otherwise on one axis."""
        return replace(self, layout=(*self.layout[:axis], placement, *self.layout[axis + 1 :]))
