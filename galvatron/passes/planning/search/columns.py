"""The strategies of a choice as columns of tables, and what layers cost under them whatever the schedule is."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from functools import cached_property

import numpy as np

from galvatron.costs.model import CostModel, LayerCost
from galvatron.costs.objective import Setting
from galvatron.ir.strategy import Strategy

Choice = tuple[Setting, list[tuple[Strategy, ...]]]
"""A setting, and the strategies that each layer may have in it."""


class Columns:
    """Columns of tables, which settings share that differ in their schedule alone. All costs are asked for when they
    are first needed, and then known whatever the budget is.

    Columns of one place have the same mesh and keep equally many shared bytes.

    Attributes:
        candidates: the strategies that each layer may have.
    """

    def __init__(self, model: CostModel, setting: Setting, candidates: Sequence[Sequence[Strategy]]) -> None:
        self.model, self.candidates = model, candidates
        self.kinds = (*model.kinds(), None)
        self._size, self._ties = setting.micro_batch, setting.ties
        self._costs: dict[Hashable, tuple[list[int], LayerCost | None]] = {}
        self._received: dict[Hashable, np.ndarray] = {}

    @staticmethod
    def of(model: CostModel, choices: Sequence[Choice]) -> Iterator[Columns]:
        """Those of each choice."""
        known: dict[Hashable, Columns] = {}
        for setting, candidates in choices:
            key = setting.pipeline_degree, setting.micro_batches, setting.ties
            if key not in known or known[key].candidates != candidates:
                known[key] = Columns(model, setting, candidates)
            yield known[key]

    @cached_property
    def _places(self) -> list[tuple[float, list[Strategy]]]:
        """Of each place the bytes that it shares, and the strategies."""
        unlike = {id(options): options for options in self.candidates}.values()
        places: dict[tuple[Hashable, float], list[Strategy]] = {}
        for strategy in dict.fromkeys(strategy for options in unlike for strategy in options):
            shared_bytes = self.model.shared_bytes(strategy, self._size, self._ties)
            places.setdefault((strategy.axes, shared_bytes), []).append(strategy)
        return [(shared_bytes, members) for (_, shared_bytes), members in places.items()]

    @cached_property
    def heads(self) -> list[Strategy]:
        """The first strategy of each place."""
        return [members[0] for _, members in self._places]

    @cached_property
    def strategies(self) -> list[Strategy]:
        """That of each column."""
        return [strategy for _, members in self._places for strategy in members]

    @cached_property
    def place(self) -> np.ndarray:
        """(S,) the place of each column."""
        return np.repeat(np.arange(len(self._places)), [len(members) for _, members in self._places])

    @cached_property
    def mesh(self) -> np.ndarray:
        """(G,) a number for each place, the same for those of one mesh."""
        meshes = list(dict.fromkeys(head.axes for head in self.heads))
        return np.array([meshes.index(head.axes) for head in self.heads])

    @cached_property
    def shared(self) -> np.ndarray:
        """(G,) bytes that a place shares."""
        return np.array([shared_bytes for shared_bytes, _ in self._places])

    @cached_property
    def repeated(self) -> list[list[int]]:
        """For each layer the earlier ones that it repeats a parameter of."""
        by_kind: dict[Hashable, list[int]] = {}
        for index, (kind, options) in enumerate(zip(self.kinds, self.candidates, strict=False)):
            if kind not in by_kind:
                cost = self.model.layer(index, options[0], self._size, self._ties)
                by_kind[kind] = [parameter.layer for parameter in cost.repeated]
        return [by_kind[kind] for kind in self.kinds[:-1]]

    def cost(self, index: int) -> tuple[list[int], LayerCost | None]:
        """The columns that a layer may have, and what it costs under each; None where there are none."""
        key = self.kinds[index], id(self.candidates[index])
        if key not in self._costs:
            possible = set(self.candidates[index])
            own = [column for column, strategy in enumerate(self.strategies) if strategy in possible]
            chosen = [self.strategies[column] for column in own]
            cost = self.model.under_each(index, chosen, self._size, self._ties) if own else None
            self._costs[key] = own, cost
        return self._costs[key]

    def boundary_bytes(self, index: int) -> np.ndarray:
        """(G,) bytes of the values that a layer gets from those before it, by its place."""
        kind = self.kinds[index]
        if kind not in self._received:
            bytes_ = [self.model.boundary_bytes(index, head, self._size) for head in self.heads]
            self._received[kind] = np.array(bytes_)
        return self._received[kind]

    def added_bytes(self, heads: np.ndarray) -> np.ndarray:
        """(n, n) bytes that a layer of a place shares and the layer before it, of another place, does not."""
        own, mesh = self.shared[heads], self.mesh[heads]
        left = np.maximum(0.0, own - own[:, None])
        return np.where(mesh[:, None] == mesh, left, own)
