"""ZeRO levels: what a device keeps of a parameter whose gradient is summed over `n` devices, and what it sends for it.

Rajbhandari, Rasley, Ruwase, He: "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models", 2020. The axes
are those on which the parameter is `R'`: data parallelism, and whatever else repeats it under different work. Of a
frozen parameter there are only values: a level that cuts these does so over all devices that have the same of it, and
the others mean nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from galvatron.ir.layout import BROADCAST, REPLICATE, Axis, Layout, Mesh


@dataclass(frozen=True)
class Level:
    """One ZeRO level.

    `values`, `gradients` and `optimizer` say what is cut into `n` parts between its uses; the optimizer's copies are
    the state of its rule and, with a master type, the master. Collectives are of the parameter (`all_gather`) and of
    its gradient (the others): `forward` and `backward` once per micro-batch, `step` and `update` once per step, beside
    the last backward and after the update of the values. Gathers of `backward` are left out where that reads no values
    (`galvatron.ir.recompute.rereads`), and in the last layer where its forward has just gathered them
    (`Schedule.turns`).

    None of them is waited for where it begins. The runtime has gathers of `forward` and `backward` run beside the layer
    before, reduce-scatters of `backward` beside the backward of the layer that it meets next, those of `step` beside
    all of the last backward that is still to come (in buckets of `BUCKET_BYTES`), and those of `update` beside the next
    forward, up to the layer that reads the values.
    """

    values: bool
    gradients: bool
    optimizer: bool
    forward: tuple[str, ...] = ()
    backward: tuple[str, ...] = ()
    step: tuple[str, ...] = ()
    update: tuple[str, ...] = ()


LEVELS = (
    Level(False, False, False, step=("all_reduce",)),
    Level(False, False, True, step=("reduce_scatter",), update=("all_gather",)),
    Level(False, True, True, backward=("reduce_scatter",), update=("all_gather",)),
    Level(True, True, True, forward=("all_gather",), backward=("all_gather", "reduce_scatter")),
)
"""By number. Level 0 is plain data parallelism; without an axis to sum over every level is that, and sends nothing."""

BUCKET_BYTES = 32 << 20
"""Of values whose gradients are summed together once per step: so many must have theirs before their sum begins."""


def summed_axes(layout: Layout, mesh: Mesh) -> Mesh:
    """The axes over which the gradient of a parameter is summed, outermost first."""
    return tuple(axis for axis, placement in zip(mesh, layout, strict=True) if placement == BROADCAST)


def in_parts(layout: Layout) -> Layout:
    """The layout of a frozen parameter whose values ZeRO cuts: over all devices that have the same of it. There is no
    gradient, so that `R'` says no more than that.
    """
    return tuple(BROADCAST if placement == REPLICATE else placement for placement in layout)


def merged(axes: Iterable[Axis]) -> Mesh:
    """The same group of devices in as few axes as possible: neighbours that nest become one."""
    result: list[Axis] = []
    for axis in sorted(axes, key=lambda axis: -axis.stride):
        if result and result[-1].stride == axis.stride * axis.size:
            outer = result.pop()
            axis = Axis(f"{outer.name}*{axis.name}", outer.size * axis.size, axis.stride)
        result.append(axis)
    return tuple(result)
