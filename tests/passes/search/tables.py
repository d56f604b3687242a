"""Random cost tables that stand for a program on a cluster."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from hypothesis import strategies as st

from galvatron.ir.strategy import Strategy
from galvatron.passes.costs.model import LayerCost, Tie

STRATEGIES = tuple(Strategy.parse(s) for s in ("dp4-tp1", "dp2-tp2", "dp1-tp4"))


@dataclass(frozen=True)
class TableModel:
    """Costs from tables: layers of few classes, with ties between the first layer and the last."""

    classes: tuple[int, ...]
    costs: dict[tuple[int, Strategy], LayerCost]
    conversions: dict[tuple[Strategy, Strategy], float]
    boundary: dict[Strategy, float]
    shared: float
    tied: bool

    def kinds(self) -> tuple[object, ...]:
        last = len(self.classes) - 1
        return tuple((c, self.tied and i == last and last > 0) for i, c in enumerate(self.classes))

    def layer(self, index: int, strategy: Strategy, micro_batch: int) -> LayerCost:
        cost = self.costs[self.classes[index], strategy]
        if self.kinds()[index][1]:  # type: ignore[index]
            return LayerCost(**{**vars(cost), "ties": (Tie(0, cost.state_bytes / 2, cost.sync_s / 2, 0.0, 3.0),)})
        return cost

    def conversion_s(self, index: int, before: Strategy, after: Strategy, micro_batch: int) -> float:
        return 0.0 if before == after else self.conversions[before, after]

    def boundary_bytes(self, index: int, strategy: Strategy, micro_batch: int) -> float:
        return self.boundary[strategy] if index < len(self.classes) else 0.0

    def transfer_s(self, index: int, strategy: Strategy, micro_batch: int) -> float:
        return self.boundary[strategy] / 4

    def shared_bytes(self, strategy: Strategy, micro_batch: int) -> float:
        return self.shared


small = st.integers(0, 12).map(float)


@st.composite
def models(draw: st.DrawFn) -> TableModel:
    kinds = draw(st.integers(1, 2))
    classes = tuple(draw(st.lists(st.integers(0, kinds - 1), min_size=1, max_size=5)))
    costs = {
        (kind, strategy): LayerCost(
            forward_s=draw(small) + 1,
            backward_s=draw(small),
            saved_bytes=draw(small),
            extra_bytes=draw(small),
            state_bytes=draw(small),
            sync_s=draw(small),
            update_s=draw(small),
        )
        for kind in range(kinds)
        for strategy in STRATEGIES
    }
    conversions = {pair: draw(small) for pair in itertools.permutations(STRATEGIES, 2)}
    boundary = {s: draw(small) for s in STRATEGIES}
    return TableModel(classes, costs, conversions, boundary, draw(small), draw(st.booleans()))
