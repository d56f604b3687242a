"""What the partitioner chose for an op under the strategies of a plan, and what else it might have, with prices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from galvatron.inspection.view import View
from galvatron.ir.graph import Graph
from galvatron.ir.program import LayerClass
from galvatron.ir.strategy import Strategy
from galvatron.partition.alternatives import Alternative, alternatives
from galvatron.partition.modes import AxisState, Mode, Split


@dataclass(frozen=True)
class AxisOption:
    """A way to run an op on an axis: what it shards, and how it has its operands and results.

    Attributes:
        op_s: seconds of the op itself, forward and backward, of the whole batch.
        more_s: seconds by which the class then takes longer than with the cheapest way, at least; None where nothing
            fits around the op.
    """

    does: str
    operands: tuple[str, ...]
    results: tuple[str, ...]
    chosen: bool
    op_s: float
    more_s: float | None


@dataclass(frozen=True)
class AxisChoice:
    """What was chosen for an op on one axis of a strategy; `whole` says why every rank computes all of it, and is empty
    where they share it."""

    strategy: str
    layers: int
    axis: str
    whole: str
    ways: tuple[AxisOption, ...]


def choices(view: View, cls: LayerClass, index: int) -> tuple[AxisChoice, ...]:
    """By strategy and mesh axis, what op `index` of a class does and might do; nothing of a program without a plan and
    a cluster to price it on, or of one that is sharded already."""
    program = view.program
    if program.plan is None or program.cluster is None or view.is_local:
        return ()
    chosen: dict[Strategy, int] = {}
    for layer, strategy in zip(program.planned_layers, program.plan.strategies, strict=True):
        if layer.cls == cls.name:
            axes = Strategy(strategy.axes)
            chosen[axes] = chosen.get(axes, 0) + 1
    found: list[AxisChoice] = []
    for strategy, layers in chosen.items():
        sharded = view.partitioner.sharded(cls.name, strategy, program.plan.ties)
        for axis, solved in zip(sharded.local.mesh, sharded.axes, strict=True):
            decision = solved.decisions[index]
            ways = _ways(cls.graph, index, decision.mode, alternatives(solved, axis, index))
            why = "" if decision.whole is None else str(decision.whole)
            found.append(AxisChoice(str(strategy), layers, str(axis), why, ways))
    return tuple(found)


def _ways(graph: Graph, index: int, chosen: Mode, offered: Sequence[Alternative]) -> tuple[AxisOption, ...]:
    """The cheapest first."""
    op = graph.ops[index]
    least_s = min((one.class_s for one in offered if one.class_s is not None), default=0.0)
    found = [
        AxisOption(
            does=_does(one.mode),
            operands=tuple(_text(graph, n, s) for n, s in zip(op.operands, one.mode.operands, strict=True)),
            results=tuple(_text(graph, v.name, s) for v, s in zip(op.results, one.mode.results, strict=True)),
            chosen=one.mode == chosen,
            op_s=one.op_s,
            more_s=None if one.class_s is None else one.class_s - least_s,
        )
        for one in offered
    ]
    return tuple(sorted(found, key=lambda way: (way.more_s is None, way.more_s or 0.0, not way.chosen)))


def _does(mode: Mode) -> str:
    if mode.factor is not None:
        return f"shares {mode.factor.name} ({mode.factor.size}){', and communicates inside' if mode.spmd else ''}"
    states = {str(state) for state in mode.results if not isinstance(state, Split)}
    if "P" in states:
        return "on terms of a sum"
    return "whole, on terms of gradients" if "R'" in states else "whole"


def _text(graph: Graph, name: str, state: AxisState) -> str:
    if not isinstance(state, Split):
        return str(state)
    return str(state.placement(graph.types[name].shape[state.dim]))
