"""What a parameter costs a device: the memory of its copies, and what is sent for it.

All of it follows from whether it is trained, from where its gradient is summed and from the ZeRO level;
`galvatron.ir.zero` is the table.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import prod

from galvatron.costs.events import CollectiveCall, Linear
from galvatron.costs.memory import Memory
from galvatron.ir.graph import Value
from galvatron.ir.layout import Axis
from galvatron.ir.program import State
from galvatron.ir.types import DTYPE_BYTES, evaluate
from galvatron.ir.update_rule import ADAMW, UpdateRule
from galvatron.ir.zero import LEVELS, in_parts, merged, summed_axes
from galvatron.machine.kernel import ACCUMULATION_PASSES


@dataclass(frozen=True)
class LocalParameter:
    """A parameter on one device.

    Attributes:
        value_bytes: of the slice that the layers read.
        master_bytes: of the same slice in the type that is trained; equal where that is the type of the values.
        has_master: whether the optimizer updates a copy in another type than that of the values.
        axes: those over which its gradient is summed, as few as tell the group, and without names; of a frozen one
            those of the devices with the same of it.
        level: of ZeRO, over these axes.
        reread: whether the backward of the layer reads the values.
        trained: whether it has a gradient, and what follows from that.
        rule: by which the optimizer updates it.
        devices: of the stage.
        whole_bytes: of all of it, in the type that is trained.
        element_bytes: of one element in that type.
    """

    value_bytes: int
    master_bytes: int
    has_master: bool
    axes: tuple[Axis, ...]
    level: int
    reread: bool = True
    trained: bool = True
    rule: UpdateRule = ADAMW
    devices: int = 1
    whole_bytes: int = 0
    element_bytes: int = 4

    @property
    def ways(self) -> int:
        """Into how many parts the level cuts what it cuts."""
        ways = 1
        for axis in self.axes if self.level else ():
            ways *= axis.size
        return ways

    @property
    def is_sent(self) -> bool:
        """Whether anything of it is: values or gradients."""
        return self.trained or self.gathered_bytes > 0

    @property
    def kept(self) -> Memory:
        """Memory that is held all the time."""
        level = LEVELS[self.level]
        if not self.trained:
            return Memory(buffers=self.value_bytes / self.ways)
        optimized = self.master_bytes / (self.ways if level.optimizer else 1)
        return Memory(
            # Of values that go after each use nothing is left where the master has another type.
            parameters=(0.0 if self.has_master else optimized) if level.values and self.axes else self.value_bytes,
            masters=optimized if self.has_master else 0.0,
            gradients=self.master_bytes / (self.ways if level.gradients else 1),
            optimizer=self.rule.copies * self.updated_bytes,
        )

    @property
    def late_bytes(self) -> float:
        """Of the gradient, what is there only from its first part on: one that is neither summed nor changes its type
        stays where autograd makes it."""
        return 0.0 if self.axes or self.has_master or not self.trained else self.master_bytes

    @property
    def gathered_bytes(self) -> float:
        """Values that are whole only while a layer runs."""
        return self.value_bytes if self.axes and LEVELS[self.level].values else 0

    @property
    def regathered_bytes(self) -> float:
        """Those that are whole for its backward, too."""
        return self.gathered_bytes if self.reread else 0

    @property
    def cast_bytes(self) -> float:
        """This rank's part of such values in their own type, held while they are gathered from masters of another."""
        return self.gathered_bytes / self.ways if self.has_master else 0.0

    @property
    def summed_bytes(self) -> float:
        """A gradient that is whole until it is summed over the devices, of which each keeps its part."""
        return self.master_bytes if self.trained and self.axes and LEVELS[self.level].gradients else 0

    @property
    def added_bytes(self) -> float:
        """This rank's part of such a sum, held until it is added to those of the micro-batches before."""
        return self.summed_bytes / self.ways

    @property
    def bucket_bytes(self) -> int:
        """Of values in a bucket whose gradients are summed once per step; 0 where that is not so."""
        return self.value_bytes if self.trained and self.axes and LEVELS[self.level].step else 0

    @property
    def trained_bytes(self) -> float:
        """This rank's part of what is trained."""
        return self.master_bytes / self.ways if self.trained else 0.0

    @property
    def updated_bytes(self) -> float:
        """What this rank's optimizer updates: its part, or of parameters that are updated whole as much as it owns, if
        these are shared out evenly."""
        if self.is_owned:
            return self.whole_bytes / self.devices
        return self.trained_bytes

    @property
    def updated_elements(self) -> float:
        """The same in elements."""
        return self.updated_bytes / self.element_bytes

    @property
    def whole_elements(self) -> float:
        """Elements of the whole parameter."""
        return self.whole_bytes / self.element_bytes

    @property
    def update_bytes(self) -> float:
        """What an update moves; the master of another type is then read again to be rounded."""
        rounding = self.master_bytes + self.value_bytes if self.has_master else 0
        return self.rule.passes * self.updated_bytes + rounding / self.ways

    @property
    def is_owned(self) -> bool:
        """Whether one rank of the stage updates it, whole."""
        return self.trained and self.rule.whole and self.devices > 1

    @property
    def brought_bytes(self) -> float:
        """Of value and gradient, what a rank sends to owners: of `devices` parts that are not alike, all but one."""
        return 2 * self.updated_bytes * (1 - self.trained_bytes / self.whole_bytes) if self.is_owned else 0.0

    @property
    def given_bytes(self) -> float:
        """Of new values, what a rank gets from other owners: its part, but for what it owns itself."""
        return self.trained_bytes * (1 - 1 / self.devices) if self.is_owned else 0.0

    @property
    def owned_bytes(self) -> float:
        """Of value and gradient, what a rank has whole during the update and in parts before."""
        return 2 * self.updated_bytes if self.is_owned and self.trained_bytes < self.whole_bytes else 0.0

    @property
    def accumulation_bytes(self) -> int:
        """What a micro-batch moves to add up its gradient, which comes in the type of the values."""
        return (ACCUMULATION_PASSES - 1) * self.master_bytes + self.value_bytes if self.trained else 0

    def at_level(self, level: int) -> LocalParameter:
        """The same at a ZeRO level, of which a frozen one takes only what is about values."""
        return replace(self, level=level if self.trained or LEVELS[level].values else 0)


def local_parameter(
    state: State, local: Value, mesh: tuple[Axis, ...], level: int, rule: UpdateRule = ADAMW
) -> LocalParameter:
    """What a parameter costs, kept as a formal of a sharded class and updated by a rule."""
    layout = local.layout or ()
    found = LocalParameter(
        value_bytes=evaluate(local.type.bytes, 1),
        master_bytes=evaluate(replace(local.type, dtype=state.type.dtype).bytes, 1),
        has_master=state.type.dtype != local.type.dtype,
        axes=tuple(
            replace(axis, name="")
            for axis in merged(summed_axes(layout if state.trainable else in_parts(layout), mesh))
        ),
        level=0,
        trained=state.trainable,
        rule=rule,
        devices=prod(axis.size for axis in mesh),
        whole_bytes=evaluate(state.type.bytes, 1),
        element_bytes=DTYPE_BYTES[state.type.dtype],
    )
    return found.at_level(level)


@dataclass(frozen=True)
class StateCollectives:
    """What is sent for parameters: per micro-batch forward and backward, and once per step, for gradients (`step`) and
    after the update."""

    forward: tuple[CollectiveCall, ...]
    backward: tuple[CollectiveCall, ...]
    step: tuple[CollectiveCall, ...]
    update: tuple[CollectiveCall, ...] = ()


def state_collectives(states: Iterable[LocalParameter]) -> StateCollectives:
    """The collectives of parameters that are synchronised together: one per kind and group of devices,
    and those of frozen ones by themselves."""
    sizes: dict[str, dict[tuple[str, tuple[Axis, ...], bool], float]] = {
        phase: defaultdict(float) for phase in ("forward", "backward", "step", "update")
    }
    for state in states:
        level, axes = LEVELS[state.level], state.axes
        for phase, by_kind in sizes.items():
            for kind in getattr(level, phase) if axes else ():
                gathers = kind == "all_gather"
                if (phase == "backward" and gathers and not state.reread) or not (gathers or state.trained):
                    continue
                by_kind[kind, axes, state.trained] += state.value_bytes if gathers else state.master_bytes
    return StateCollectives(**{phase: _events(by_kind) for phase, by_kind in sizes.items()})


def _events(sizes: dict[tuple[str, tuple[Axis, ...], bool], float]) -> tuple[CollectiveCall, ...]:
    return tuple(
        CollectiveCall(kind, axis, Linear(payload, 0.0))
        for (kind, axes, _), size in sizes.items()
        for axis, payload in _by_axis(axes, size)
    )


def _by_axis(axes: tuple[Axis, ...], size: float) -> list[tuple[Axis, float]]:
    """A group that is no single axis is priced as one collective per axis, each on what the inner ones leave."""
    parts: list[tuple[Axis, float]] = []
    for axis in reversed(axes):
        parts.append((axis, size))
        size /= axis.size
    return parts
