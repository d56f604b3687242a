"""Random cost tables that stand for a program on a cluster."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace

import numpy as np
from hypothesis import strategies as st

from galvatron.costs.memory import Memory
from galvatron.costs.model import CostModel, LayerCost, Repeated
from galvatron.ir.contention import NOTHING_BESIDE, Contention
from galvatron.ir.plan import Ties
from galvatron.ir.strategy import Strategy
from galvatron.ir.zero import BUCKET_BYTES

STRATEGIES = tuple(Strategy.parse(s) for s in ("dp4-tp1", "dp2-tp2", "dp2-tp2-recompute"))

Table = dict[tuple[int, Strategy], LayerCost]
"""The cost of a layer by its class and strategy."""


@dataclass(frozen=True)
class TableModel(CostModel):
    """Costs from tables: layers of few classes, some of which share parameters (`shares`, layers by index).

    Layers of a tie that is kept in parts cost what `together` says. One that comes after another on the same stage does
    not pay for the parameter again: the first that it repeats is `first_part` of its cost, 1/2 unless given, and the
    next ones share the rest but a quarter.
    """

    classes: tuple[int, ...]
    costs: Table
    conversions: dict[tuple[Strategy, Strategy], float]
    boundary: dict[Strategy, float]
    shared: dict[Strategy, float]
    shares: tuple[tuple[int, ...], ...] = ()
    together: Table = field(default_factory=dict)
    first_part: dict[Strategy, float] = field(default_factory=dict)

    def tied(self) -> dict[str, tuple[int, ...]]:
        return {f"tie {i}": layers for i, layers in enumerate(self.shares)}

    def kinds(self) -> tuple[object, ...]:
        return tuple((c, self._ties(i), self._earlier(i)) for i, c in enumerate(self.classes))

    def _ties(self, index: int) -> tuple[str, ...]:
        return tuple(name for name, layers in self.tied().items() if index in layers)

    def _earlier(self, index: int) -> tuple[int, ...]:
        """Of each parameter that a layer repeats, the last layer before it that has it."""
        found = ([i for i in layers if i < index] for layers in self.shares if index in layers)
        return tuple(max(layers) for layers in found if layers)

    def layer(self, index: int, strategy: Strategy, micro_batch: int, ties: Ties) -> LayerCost:
        in_parts = any(dict(ties)[name] is not None for name in self._ties(index))
        cost = (self.together if in_parts else self.costs)[self.classes[index], strategy]
        earlier = self._earlier(index)
        first = self.first_part.get(strategy, 0.5)
        parts = [first, *[(0.75 - first) / max(1, len(earlier) - 1)] * (len(earlier) - 1)] if earlier else []
        return replace(
            cost,
            repeated=tuple(
                Repeated(
                    layer=layer,
                    backward_gather_s=cost.backward_gather_s * part,
                    reduce_s=cost.reduce_s * part,
                    state=Memory(parameters=cost.state_bytes * part),
                    late_bytes=cost.late_bytes * part,
                    update_bytes=cost.update_bytes * part,
                    sync_s=cost.sync_s * part,
                    publish_s=cost.publish_s * part,
                    bucket_bytes=cost.bucket_bytes * part,
                    update_s=0.0,
                    across_s=3.0,
                )
                for layer, part in zip(earlier, parts, strict=True)
            ),
        )

    def conversion_s(self, index: int, before: Strategy, after: Strategy, micro_batch: int) -> float:
        return 0.0 if before.axes == after.axes else self.conversions[before, after]

    def boundary_bytes(self, index: int, strategy: Strategy, micro_batch: int) -> float:
        return self.boundary[strategy] if index < len(self.classes) else 0.0

    def transfer_s(self, index: int, strategy: Strategy, micro_batch: int) -> float:
        return self.boundary[strategy] / 4

    def shared_bytes(self, strategy: Strategy, micro_batch: int, ties: Ties) -> float:
        return self.shared[strategy]


class Drawn:
    """Costs of small whole numbers, in which ties are common and sums are exact."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)

    def small(self) -> float:
        return float(self.random.integers(0, 12, endpoint=True))

    def cost(self) -> LayerCost:
        small = self.small
        contentions = (Contention(), Contention(0.75, 0.5), NOTHING_BESIDE)
        return LayerCost(
            forward_s=small() + 1,
            backward_s=small(),
            backward_communication_s=small(),
            backward_host_s=small(),
            forward_gather_s=small(),
            reduce_s=small(),
            saved_bytes=small(),
            extra=Memory(working=small()),
            state=Memory(parameters=small(), gradients=4.0),
            late_bytes=float(self.random.choice([0.0, 4.0])),
            update_bytes=small(),
            bucket_bytes=small() * BUCKET_BYTES / 8,
            sync_s=small(),
            publish_s=small(),
            start_s=small(),
            update_s=small(),
            contention=contentions[int(self.random.integers(len(contentions)))],
        )


@st.composite
def models(
    draw: st.DrawFn, tied: bool = True, options: tuple[Strategy, ...] = STRATEGIES, layers: tuple[int, int] = (1, 5)
) -> TableModel:
    kinds, tables = draw(st.integers(1, 2)), draw(st.builds(Drawn, st.integers(0, 2**32 - 1)))
    classes = tuple(draw(st.lists(st.integers(0, kinds - 1), min_size=layers[0], max_size=layers[1])))
    table, together = (
        {(kind, strategy): tables.cost() for kind in range(kinds) for strategy in options} for _ in range(2)
    )
    moves = {pair: tables.small() for pair in itertools.permutations(dict.fromkeys(s.axes for s in options), 2)}
    conversions = {(a, b): moves.get((a.axes, b.axes), 0.0) for a, b in itertools.permutations(options, 2)}
    kept = {s.axes: tables.small() for s in options}
    boundary = {s: kept[s.axes] for s in options}
    shared = {s: tables.small() for s in options}
    order = draw(st.permutations(range(len(classes))))
    sizes = draw(st.sampled_from([(), (2,), (3,), (2, 2), (2, 3), (1,)])) if tied else ()
    starts = itertools.accumulate(sizes, initial=0)
    shares = tuple(
        tuple(sorted(order[start : start + size]))
        for start, size in zip(starts, sizes, strict=False)
        if start + size <= len(order)
    )
    if tied and len(classes) > 2 and draw(st.booleans()):  # the last layer may have two, that of an epilogue too
        shares = tuple((i, len(classes) - 1) for i in range(2))
    if draw(st.booleans()):  # sharing costs no more, as it mostly does
        together = table
    first_part = {s: draw(st.sampled_from([0.25, 0.5])) for s in options}
    return TableModel(classes, table, conversions, boundary, shared, shares, together, first_part)
