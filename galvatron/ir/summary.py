"""A program at a glance: its layer classes in a line each."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from galvatron.ir.cost import at_batch
from galvatron.ir.types import Dim
from galvatron.printing import html_table
from galvatron.units import format_bytes, format_flop

if TYPE_CHECKING:
    from galvatron.ir.cost import ClassCost
    from galvatron.ir.program import LayerClass, Program


@dataclass(frozen=True)
class ClassSummary:
    """A layer class: how many layers have it, from which to which, and what one of them is.

    Attributes:
        parameters: elements of those of one layer.
        stages: those that have such layers; none before there are stages.
        strategies: each with how many of the layers have it; none before there is a plan.
    """

    name: str
    kind: str
    layers: int
    first: str
    last: str
    parameters: int
    stages: tuple[int, ...]
    strategies: tuple[tuple[str, int], ...]

    @property
    def which(self) -> str:
        """Which layers."""
        return self.first if self.layers == 1 else f"{self.first} … {self.last}"

    @property
    def planned(self) -> str:
        """Their strategies."""
        return ", ".join(name if count == self.layers else f"{name} ×{count}" for name, count in self.strategies)


def class_summaries(program: Program) -> tuple[ClassSummary, ...]:
    """The classes of a program that has layers, but for those of no layer."""
    strategies = strategies_of(program)
    return tuple(_summary(program, cls, strategies) for cls in program.classes if program.layers_of[cls.name])


def strategies_of(program: Program) -> dict[str, str]:
    """The strategy that a plan gives to each layer, by its name; there is none once classes have their own."""
    if program.plan is None or program.stages:
        return {}
    names = (layer.name for layer in program.planned_layers)
    return dict(zip(names, map(str, program.plan.strategies), strict=True))


def _summary(program: Program, cls: LayerClass, strategies: dict[str, str]) -> ClassSummary:
    layers = program.layers_of[cls.name]
    found = Counter(strategies[one.name] for one in layers if one.name in strategies)
    if cls.strategy is not None:
        found = Counter({str(cls.strategy): len(layers)})
    stages = (i for i, own in program.layer_groups if i is not None and any(layer.cls == cls.name for layer in own))
    return ClassSummary(
        name=cls.name,
        kind=str(layers[0].kind),
        layers=len(layers),
        first=layers[0].name,
        last=layers[-1].name,
        parameters=program.count_parameters(layers[0].state),
        stages=tuple(stages),
        strategies=tuple(found.items()),
    )


def sample_costs(cost: ClassCost, batch_size: int) -> tuple[float, float, float, float]:
    """FLOP forward and backward, bytes kept and bytes moved of one sample, in a batch of that size."""

    def share(figure: Dim) -> float:
        return at_batch(figure, batch_size) / batch_size

    return share(cost.forward_flop), share(cost.backward_flop), share(cost.saved_bytes), share(cost.traffic_bytes)


def program_html(program: Program) -> str:
    """A program as a notebook shows it: its classes, with what they cost where it says so."""
    parameters = program.count_parameters(program.state_of)
    title = f"{program.name}, {program.form}, batch {program.batch_size}: {parameters:,} parameters"
    if program.graph is not None:
        counts = (program.graph.ops, program.inputs, program.state)
        return html_table(title, ("ops", "inputs", "state"), [[f"{len(parts):,}" for parts in counts]], "rrr")
    rows = [
        (one.name, one.kind, f"{one.layers:,}", one.which, f"{one.parameters:,}", *_costs(program, one), one.planned)
        for one in class_summaries(program)
    ]
    columns = ("class", "kind", "layers", "which", "parameters", "forward", "backward", "kept", "strategies")
    sides = "llrlrrrrl"
    used = [place for place in range(len(columns)) if any(row[place] for row in rows)]
    kept = [[row[place] for place in used] for row in (columns, *rows)]
    return html_table(title, kept[0], kept[1:], "".join(sides[place] for place in used))


def _costs(program: Program, summary: ClassSummary) -> tuple[str, str, str]:
    cost = program.class_of[summary.name].cost
    if cost is None:
        return "", "", ""
    forward_flop, backward_flop, kept_bytes, _ = sample_costs(cost, program.batch_size)
    return format_flop(forward_flop), format_flop(backward_flop), format_bytes(kept_bytes)
