"""The strategies of a choice as columns of tables, and what layers cost under them whatever the schedule is."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np

from galvatron.costs.model import CostModel, LayerCost
from galvatron.costs.objective import Setting
from galvatron.ir.strategy import Strategy

Options = tuple[Strategy, ...]
"""The strategies that a layer may have."""


class Choice(NamedTuple):
    """A setting, and the strategies that each layer may have in it; where ties are open, whether all of them are kept
    alike."""

    setting: Setting
    candidates: list[Options]
    alike: bool = False


@dataclass
class Places:
    """Columns by place: those of one have the same mesh and keep equally many shared bytes.

    Attributes:
        members: of each place the bytes that it shares, and the strategies.
        numbers: (S,) the number of the strategy of each column.
        costs: the columns that layers of a kind may have with some options, and what they cost under each.
        received: (G,) bytes of the values that a layer of a kind gets from those before it, by its place.
    """

    members: list[tuple[float, list[Strategy]]]
    numbers: np.ndarray
    costs: dict[Hashable, tuple[np.ndarray, LayerCost | None]] = field(default_factory=dict)
    received: dict[Hashable, np.ndarray] = field(default_factory=dict)

    @cached_property
    def heads(self) -> list[Strategy]:
        """The first strategy of each place."""
        return [strategies[0] for _, strategies in self.members]

    @cached_property
    def strategies(self) -> list[Strategy]:
        """That of each column."""
        return [strategy for _, strategies in self.members for strategy in strategies]

    @cached_property
    def place(self) -> np.ndarray:
        """(S,) the place of each column."""
        return np.repeat(np.arange(len(self.members)), [len(strategies) for _, strategies in self.members])

    @cached_property
    def kept(self) -> tuple[list[Strategy | None], np.ndarray]:
        """The ways in which strategies keep parameters, and (S,) the number of that of each column."""
        numbers: dict[Strategy | None, int] = {}
        own = [numbers.setdefault(strategy.keeping, len(numbers)) for strategy in self.strategies]
        return list(numbers), np.array(own, dtype=int)

    @cached_property
    def mesh(self) -> np.ndarray:
        """(G,) a number for each place, the same for those of one mesh."""
        meshes = {axes: number for number, axes in enumerate(dict.fromkeys(head.axes for head in self.heads))}
        return np.array([meshes[head.axes] for head in self.heads])

    @cached_property
    def shared(self) -> np.ndarray:
        """(G,) bytes that a place shares."""
        return np.array([shared_bytes for shared_bytes, _ in self.members])


class Shelf:
    """What the columns of all choices have in common. Many choices differ in what a few layers may have, since these
    share parameters and have to keep them alike: strategies have numbers here, and what is told of the same ones is
    told once."""

    def __init__(self, model: CostModel) -> None:
        self._model = model
        self._numbers: dict[Strategy, int] = {}
        self._options: dict[int, tuple[Options, np.ndarray]] = {}
        self._places: dict[Hashable, Places] = {}

    def numbers(self, options: Options) -> np.ndarray:
        """Those of strategies."""
        if id(options) not in self._options:
            found = [self._numbers.setdefault(strategy, len(self._numbers)) for strategy in options]
            self._options[id(options)] = options, np.array(found, dtype=int)
        return self._options[id(options)][1]

    def places(self, setting: Setting, candidates: Sequence[Options]) -> Places:
        """The columns for all that layers may have in a setting."""
        numbers = np.unique(np.concatenate([self.numbers(one) for one in {id(o): o for o in candidates}.values()]))
        key = numbers.tobytes(), setting.micro_batch, tuple(kept is None for _, kept in setting.ties)
        if key not in self._places:
            self._places[key] = self._found(numbers, setting)
        return self._places[key]

    def _found(self, numbers: np.ndarray, setting: Setting) -> Places:
        every = list(self._numbers)
        by_place: dict[tuple[Hashable, float], list[int]] = {}
        for number in numbers.tolist():
            strategy = every[number]
            shared_bytes = self._model.shared_bytes(strategy, setting.micro_batch, setting.ties)
            by_place.setdefault((strategy.axes, shared_bytes), []).append(number)
        members = [(shared_bytes, [every[n] for n in own]) for (_, shared_bytes), own in by_place.items()]
        return Places(members, np.array([number for own in by_place.values() for number in own], dtype=int))


class Columns:
    """Columns of tables, which settings share that differ in their schedule alone. All costs are asked for when they
    are first needed, and then known whatever the budget is.

    Attributes:
        candidates: the strategies that each layer may have.
    """

    def __init__(self, model: CostModel, setting: Setting, candidates: Sequence[Options], shelf: Shelf) -> None:
        self.model, self.candidates = model, candidates
        self.kinds = (*model.kinds(), None)
        self._setting, self._shelf = setting, shelf

    @staticmethod
    def of(model: CostModel, choices: Sequence[Choice]) -> Iterator[Columns]:
        """Those of each choice."""
        known: dict[Hashable, Columns] = {}
        shelf = Shelf(model)
        for setting, candidates, _ in choices:
            key = setting.pipeline_degree, setting.micro_batches, setting.ties
            if key not in known or known[key].candidates != candidates:
                known[key] = Columns(model, setting, candidates, shelf)
            yield known[key]

    @cached_property
    def places(self) -> Places:
        """The strategies of columns, by place."""
        return self._shelf.places(self._setting, self.candidates)

    @cached_property
    def repeated(self) -> list[list[int]]:
        """For each layer the earlier ones that it repeats a parameter of."""
        by_kind: dict[Hashable, list[int]] = {}
        for index, (kind, options) in enumerate(zip(self.kinds, self.candidates, strict=False)):
            if kind not in by_kind:
                cost = self.model.layer(index, options[0], self._setting.micro_batch, self._setting.ties)
                by_kind[kind] = [parameter.layer for parameter in cost.repeated]
        return [by_kind[kind] for kind in self.kinds[:-1]]

    def cost(self, index: int) -> tuple[np.ndarray, LayerCost | None]:
        """The columns that a layer may have, and what it costs under each; None where there are none."""
        places, options, setting = self.places, self.candidates[index], self._setting
        key = self.kinds[index], id(options)
        if key not in places.costs:
            own = np.flatnonzero(np.isin(places.numbers, self._shelf.numbers(options)))
            chosen = [places.strategies[column] for column in own]
            cost = self.model.under_each(index, chosen, setting.micro_batch, setting.ties) if chosen else None
            places.costs[key] = own, cost
        return places.costs[key]

    def boundary_bytes(self, index: int) -> np.ndarray:
        """(G,) bytes of the values that a layer gets from those before it, by its place."""
        kind, places = self.kinds[index], self.places
        if kind not in places.received:
            bytes_ = [self.model.boundary_bytes(index, head, self._setting.micro_batch) for head in places.heads]
            places.received[kind] = np.array(bytes_)
        return places.received[kind]

    def added_bytes(self, heads: np.ndarray) -> np.ndarray:
        """(n, n) bytes that a layer of a place shares and the layer before it, of another place, does not."""
        own, mesh = self.places.shared[heads], self.places.mesh[heads]
        left = np.maximum(0.0, own - own[:, None])
        return np.where(mesh[:, None] == mesh, left, own)
