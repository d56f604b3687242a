"""The SPMD partitioner: a layer class and a strategy become the local graph that one rank runs.

Axis by axis, outermost first, a role sets the boundary condition and the solver picks a mode for every op; the choices
of all axes together give the local graph, with every collective and its adjoint in place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from galvatron.errors import StrategyError, did_you_mean
from galvatron.ir.layout import Axis, Layout
from galvatron.ir.program import LayerClass
from galvatron.ir.strategy import Strategy
from galvatron.partition.axes import SolvedAxes, SolvedAxis
from galvatron.partition.boundary import ROLES, Role
from galvatron.partition.decisions import Decision
from galvatron.partition.localize import Localizer, MicroBatch


@dataclass(frozen=True)
class ShardedClass:
    """A layer class under a strategy: its local form, and what was found of each mesh axis of it."""

    local: LayerClass
    axes: tuple[SolvedAxis, ...]

    @property
    def decisions(self) -> tuple[tuple[Decision, ...], ...]:
        """Per mesh axis, the decision for each op."""
        return tuple(axis.decisions for axis in self.axes)


def shard_class(
    cls: LayerClass, strategy: Strategy, axes: SolvedAxes, whole: MicroBatch, kept: Mapping[str, Layout]
) -> ShardedClass:
    """A layer class under a strategy; the local form is named `class@strategy`.

    Args:
        axes, whole: of the class.
        kept: layouts on the mesh of the strategy that some parameters are to have. On an axis, or a sub-axis of
            one, where its ops cannot read it so it is whole.

    Raises:
        StrategyError: the strategy has a role that the partitioner does not know, or a size does not divide.
    """
    mesh: list[Axis] = []
    solved: list[SolvedAxis] = []
    for position, (whole_axis, name) in enumerate(zip(strategy.mesh, strategy.roles, strict=True)):
        placed = {name: layout[position] for name, layout in kept.items()}
        role = _role(strategy, name)
        outer: SolvedAxis | None = None
        left: Axis | None = whole_axis
        while left is not None:
            before = zip((one.effect for one in solved), (axis.size for axis in mesh), strict=True)
            cuts = tuple(sorted(before, key=lambda cut: (cut[0].number, cut[1])))
            axis, left, outer = axes.solved(left, role, placed, cuts, outer)
            mesh.append(axis)
            solved.append(outer)
    local = Localizer(whole, tuple(mesh), [whole.placed(axis) for axis in solved]).run()
    return ShardedClass(
        LayerClass(f"{cls.name}@{strategy}", local, base=cls.name, strategy=strategy, mesh=tuple(mesh)), tuple(solved)
    )


def _role(strategy: Strategy, name: str) -> Role:
    if name not in ROLES:
        raise StrategyError(f"strategy {strategy}: role {name!r} is not supported; {did_you_mean(name, ROLES)}")
    return ROLES[name]
