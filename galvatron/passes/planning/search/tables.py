"""What a setting asks of the solver: tables of the costs of its layers under their strategies."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from galvatron.costs.columns import joined
from galvatron.costs.model import CostModel, Front, LayerCost
from galvatron.costs.objective import Setting, is_last
from galvatron.costs.steepest import steepest
from galvatron.ir.plan import Ties
from galvatron.ir.strategy import Strategy
from galvatron.ir.zero import BUCKET_BYTES
from galvatron.passes.planning.search.borders import Borders
from galvatron.passes.planning.search.columns import Choice, Columns
from galvatron.passes.planning.search.ties import IN_PARTS, common, is_open, ways
from galvatron.schedules import SENDS_IN_FLIGHT, held_when_most, paths, way_through
from galvatron.solver import Chain, Opening, Pipeline, Ranks, Rates

Stages = tuple[tuple[Strategy, ...], ...]


@dataclass(frozen=True)
class Tables:
    """The problem of a setting, and the strategy that each column of it stands for."""

    pipeline: Pipeline
    strategies: tuple[Strategy, ...]

    def stages(self, choice: np.ndarray, borders: np.ndarray) -> Stages:
        """What a solution means."""
        chosen = [self.strategies[column] for column in choice]
        return tuple(tuple(chosen[first:end]) for first, end in itertools.pairwise(borders))


class TableBuilder:
    """Makes the tables of a setting.

    A column is one of `Columns` with a memory (`Borders`). Where devices hold several stages (`ranks`), nothing is
    remembered: what a layer may share with an earlier one of its device it does, so that tables say what it costs at
    least. Bytes are then such that those of the stages of a device add up to no more than it has in use: what only one
    stage has at a time counts as its share.

    Args:
        columns: made for this setting, or for one that differs in its schedule and in how it keeps in parts what it
            does not keep whole alone.
        alike: whether all ties that are open are kept alike.
        among: the one of which this is a way to keep ties, and so allows some columns only.
    """

    def __init__(
        self, setting: Setting, columns: Columns, *, alike: bool = False, among: TableBuilder | None = None
    ) -> None:
        self.setting, self.columns, self.model = setting, columns, columns.model
        self.candidates, self.kinds = columns.candidates, columns.kinds
        self.joint = setting.order.stages_per_rank > 1
        self._alike, self._among = alike, among

    @staticmethod
    def of(model: CostModel, choices: Sequence[Choice]) -> list[TableBuilder]:
        """Those of some choices, which ask for costs when they are asked for tables."""
        pairs = zip(choices, Columns.of(model, choices), strict=True)
        return [TableBuilder(choice.setting, columns, alike=choice.alike) for choice, columns in pairs]

    @property
    def is_open(self) -> bool:
        """Whether some tie is kept in one of several ways: no plan is one of this choice, but of one of its `ways`."""
        return is_open(self.setting.ties)

    @property
    def is_way(self) -> bool:
        """Whether it is a way to keep ties of another one."""
        return self._among is not None

    def settled(self, stages: Stages) -> Setting | None:
        """The setting with ties as the layers of a choice keep them; None where they keep an open one differently."""
        if not self.is_open:
            return self.setting
        keepings = [strategy.keeping for strategy in itertools.chain(*stages)]
        options = {name: common([[keepings[index]] for index in layers]) for name, layers in self._open.items()}
        return next((replace(self.setting, ties=ties) for ties in self._ways(options)), None)

    def ways(self, left: np.ndarray | None = None) -> Iterator[TableBuilder]:
        """The same for each way to keep what is open; this one where nothing is.

        Args:
            left: (L, S) whether a layer may have a column; ways that leave nothing to some layer are left out.
        """
        if not self.is_open:
            yield self
            return
        keepings, own = self.columns.places.kept
        allowed = self.allowed
        if left is not None:
            allowed = np.any(left.reshape(*allowed.shape[:1], -1, allowed.shape[1]), axis=1)
        options = {
            name: common([[keepings[k] for k in np.unique(own[allowed[index]])] for index in layers])
            for name, layers in self._open.items()
        }
        for ties in self._ways(options):
            if (allowed & self._keeping(ties)).any(axis=1).all():
                yield TableBuilder(replace(self.setting, ties=ties), self.columns, among=self)

    @property
    def _open(self) -> dict[str, Sequence[int]]:
        """The layers of each tie that is open."""
        return {name: self.model.tied()[name] for name, kept in self.setting.ties if kept == IN_PARTS}

    def _ways(self, options: Mapping[str, Sequence[Strategy | None]]) -> Iterator[Ties]:
        return ways(self.setting.ties, options, alike=self._alike)

    def _keeping(self, ties: Ties) -> np.ndarray:
        """(L, S) whether a layer keeps its ties so with the strategy of a column, those that are not whole."""
        keepings, own = self.columns.places.kept
        found = np.ones((len(self.candidates), len(own)), dtype=bool)
        for name, kept in ties:
            if kept is not None:
                found[list(self.model.tied()[name])] &= own == keepings.index(kept)
        return found

    @property
    def allowed(self) -> np.ndarray:
        """(L, S) whether a layer may have the strategy of a column."""
        if self._among is not None:
            return self._among.allowed & self._keeping(self.setting.ties)
        found = np.zeros((len(self.candidates), len(self.strategies)), dtype=bool)
        for index, row in enumerate(found):
            row[self.columns.cost(index)[0]] = True
        return found

    @property
    def heads(self) -> list[Strategy]:
        return self.columns.places.heads

    @property
    def place(self) -> np.ndarray:
        return self.columns.places.place

    @property
    def strategies(self) -> list[Strategy]:
        return self.columns.places.strategies

    @cached_property
    def borders(self) -> Borders:
        """What columns remember."""
        nothing: list[list[int]] = [[] for _ in self.candidates]
        return Borders.of(nothing if self.joint else self.columns.repeated, self.setting.pipeline_degree)

    def free(self, budget_bytes: float) -> Pipeline:
        """The problem without moves, of which no choice takes more: all columns are in one place."""
        rows, layers = self._rows, len(self.candidates)
        names: tuple[str, ...] = ("move_s", "move_kept", "enter_s", "receive_s")
        nothing = {name: np.zeros((1, 1, 1)) for name in names}
        place = np.zeros(len(self.place) * len(self.borders.memories), dtype=int)
        least = {**rows, "end": rows["end"].min(axis=-1, keepdims=True)}
        return self._pipeline(budget_bytes, place, least, np.zeros(layers, dtype=int), nothing)

    def tables(self, budget_bytes: float, left: np.ndarray | None = None) -> Tables:
        """The tables, with a budget of a device. Moves between meshes that no neighbours have are endless.

        Args:
            left: (L, S) whether a layer may have a column; None for all.
        """
        count, layers, memories = len(self.place), len(self.candidates), self.borders.memories
        every_one = np.ones((layers, 1, count), dtype=bool)
        own = np.any(every_one if left is None else left.reshape(layers, -1, count), axis=1)
        wanted = np.flatnonzero(own.any(axis=0))
        heads, place = np.unique(self.place[wanted], return_inverse=True)
        every = {"end": np.concatenate([heads + memory * len(self.heads) for memory in memories])}
        columns = np.concatenate([wanted + memory * count for memory in memories])
        rows = {name: row[..., every.get(name, columns)] for name, row in self._rows.items()}
        there = np.stack([own[:, self.place == head].any(axis=1) for head in heads], axis=1)
        moves, steps = self._numbered_moves(heads, there)
        places = np.concatenate([place + memory * len(heads) for memory in memories])
        pipeline = self._pipeline(budget_bytes, places, rows, moves, steps)
        return Tables(pipeline, tuple(self.strategies[column] for column in wanted) * len(memories))

    def ranks(self, pipeline: Pipeline, *, closely: bool = False) -> Ranks:
        """The tables of stages of which devices hold several, with what their schedule takes at least.

        Args:
            closely: whether that is looked for in the whole order, which takes longer.
        """
        setting, pace = self.setting, self.setting.shared_pace
        degree, count = setting.pipeline_degree, setting.micro_batches
        holders = np.array(setting.holders)
        arrives = np.append(False, holders[1:] != holders[:-1])

        def rates(own: np.ndarray, received: float = 1.0) -> Rates:
            moved = own[:, :2].mean(axis=1)
            return Rates(own, moved, received * np.where(arrives, moved, 0.0))

        ways = [rates(np.array(own)) for own in paths(setting.order, degree, count)]
        if pace.is_even:
            bounds = [Rates.mean(ways), rates(np.array(way_through(setting.order, degree)))]
            if closely and (mean := steepest(setting.order, degree, count)) is not None:
                bounds.append(rates(np.array(mean)))
        else:  # cores that ranks share are never more than busy
            bounds = [rates(np.full_like(ways[0].own, count / degree), received=0.0)]
        bound = max(bounds, key=lambda bound: float(bound.own.sum(axis=1).min()))
        return Ranks(pipeline, holders, tuple(ways), bound, pace.shares[0])

    def _pipeline(
        self,
        budget_bytes: float,
        place: np.ndarray,
        rows: dict[str, np.ndarray],
        moves: np.ndarray,
        steps: dict[str, np.ndarray],
    ) -> Pipeline:
        setting, pace = self.setting, self.setting.shared_pace
        chain = Chain(
            kinds=self._kinds,
            moves=moves,
            place=place,
            **{name: rows[name] for name in ("micro_s", "step_s", "state", "kept", "transient", "update")},
            move_s=steps["move_s"],
            move_kept=steps["move_kept"],
            opening=Opening(float(BUCKET_BYTES), rows["amount"], rows["toll_s"], rows["start_s"]),
        )
        return Pipeline(
            chain=chain,
            lines=pace.lines(setting.micro_batches)[: 1 if pace.is_even else 2],
            wait=pace.shares[0],
            budget=np.full(len(setting.holders), float(budget_bytes - setting.fixed_bytes) * self._share),
            in_flight=np.array(self._held),
            **{name: rows[name].swapaxes(0, 1) for name in ("late", "begin", "end")},
            enter_s=steps["enter_s"],
            receive_s=steps["receive_s"],
        )

    @property
    def _share(self) -> float:
        """Of a stage, of its device."""
        return 1 / self.setting.order.stages_per_rank

    @cached_property
    def _held(self) -> tuple[float, ...]:
        """For each stage the micro-batches that it holds when its device has most."""
        setting = self.setting
        degree, count = setting.pipeline_degree, setting.micro_batches
        return held_when_most(setting.order, degree, count, epilogue=setting.epilogue)

    @cached_property
    def _numbered_layers(self) -> tuple[np.ndarray, list[int]]:
        return _numbered([self._layer_key(i) for i in range(len(self.candidates))])

    @property
    def _kinds(self) -> np.ndarray:
        return self._numbered_layers[0]

    @cached_property
    def _rows(self) -> dict[str, np.ndarray]:
        """Of each kind; see `_row`."""
        firsts = self._numbered_layers[1]
        if self._among is None:
            figures = self._figures(firsts)
            return _stacked([self._row(i, own) for i, own in zip(firsts, figures, strict=True)])
        rows, own = self._among._rows, self._keeping(self.setting.ties)[firsts]
        allowed = np.tile(own, len(self.borders.memories))[:, None]
        return {**rows, "micro_s": np.where(allowed, rows["micro_s"], np.inf)}

    def _layer_key(self, index: int) -> Hashable:
        """What the row of a layer depends on, besides strategies and memories."""
        receives = index > 0
        possible = id(self.candidates[index])
        return (receives, *self.kinds[index : index + 2], possible, *self.borders.spans[index].items())

    def _move_key(self, index: int) -> Hashable:
        known = index < len(self.candidates)
        return (*self.kinds[index - 1 : index + 1], *self.borders.moving(index)) if known else ()

    def _row(self, index: int, figures: np.ndarray) -> dict[str, np.ndarray]:
        """Of a layer, arrays whose last dimension is that of the columns, or of the places for `end`.

        Args:
            figures: see `_figures`.
        """
        setting, held = self.setting, np.array(self.setting.in_flight)
        phases, share = len(setting.order.parts), self._share
        figures[phases + _FIGURES.index("transient")] *= share
        back = np.minimum(setting.micro_batches - held, SENDS_IN_FLIGHT + 1)
        back[0] = 0
        leaving = np.full(len(held), min(setting.micro_batches, SENDS_IN_FLIGHT))
        received = self.columns.boundary_bytes(index) if index else np.zeros(len(self.heads))
        sent = self.columns.boundary_bytes(index + 1)
        begin = np.multiply.outer(self._held, self.columns.places.shared) + share * np.multiply.outer(back, received)
        times = len(self.borders.memories)
        return {
            **dict(zip(_FIGURES, figures[phases:], strict=False)),
            "micro_s": figures[:phases],
            "late": share * figures[phases + len(_FIGURES) :],
            "begin": np.tile(begin[:, self.place], times),
            "end": np.tile(share * np.multiply.outer(leaving, sent), times),
        }

    def _figures(self, layers: Sequence[int]) -> np.ndarray:
        """Of each of some layers, with each memory, by strategy: seconds of each phase, `_FIGURES`, and late bytes of
        each stage."""
        setting, memories, strategies = self.setting, self.borders.memories, len(self.strategies)
        phases = len(setting.order.parts)
        table = np.zeros((len(layers), phases + len(_FIGURES) + len(setting.in_flight), len(memories) * strategies))
        table[:, :phases] = np.inf
        rows: list[int] = []
        columns: list[np.ndarray] = []
        costs: list[LayerCost] = []
        for row, index in enumerate(layers):
            own, cost = self.columns.cost(index)
            if cost is None:
                continue
            if is_last(self.model, index):
                cost = cost.turned(setting.turning_share)
            for memory in memories:
                if self.borders.possible(index, memory):
                    rows += [row] * len(own)
                    columns.append(own + memory * strategies)
                    costs.append(self._settled(cost, index, memory))
        if costs:
            every = joined(costs)
            late = [setting.late_bytes(every, held) for held in setting.in_flight]
            figures = np.broadcast_arrays(*every.times.parts(setting.order), *_once(every), *late)
            table[np.array(rows), :, np.concatenate(columns)] = np.stack(figures, axis=1)
        return table

    def _settled(self, cost: LayerCost, index: int, memory: int) -> LayerCost:
        """The cost of a layer that has a memory."""
        if not self.joint:
            return self.borders.settled(cost, index, memory)
        # The first layer is in the first stage and the last one in the last; others may be anywhere.
        ends, holders = (0, len(self.candidates) - 1), self.setting.holders
        return cost.beside(lambda earlier: (earlier, index) != ends or holders[0] == holders[-1])

    def _numbered_moves(self, places: np.ndarray, there: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """For each layer the number of the move to it, and of each of these; see `_moves`.

        Args:
            there: (L, G) whether a layer may be in a place.
        """
        moves, firsts = _numbered([self._move_key(max(1, i)) for i in range(len(there))])
        behind = [1 + np.flatnonzero(moves[1:] == number) for number in range(len(firsts))]
        ends = [(np.any(there[its - 1], axis=0), np.any(there[its], axis=0)) for its in behind]
        return moves, _stacked([self._moves(max(1, i), places, *both) for i, both in zip(firsts, ends, strict=True)])

    def _moves(self, index: int, places: np.ndarray, before: np.ndarray, after: np.ndarray) -> dict[str, np.ndarray]:
        """Of the move to a layer between places; see `Chain` and `Pipeline`.

        Args:
            before, after: whether the layer before, and this one, may be in each place.
        """
        heads = [self.heads[place] for place in places]
        model, setting, borders, count = self.model, self.setting, self.borders, len(heads)
        shape = (count * len(borders.memories),) * 2
        going, entering, receiving, kept = (np.zeros(shape) for _ in range(4))
        if index < len(self.candidates):
            size = setting.micro_batch
            meshes = list({head.axes: head for head in heads}.values())
            mesh = np.array([[one.axes for one in meshes].index(head.axes) for head in heads])
            sources, targets = np.unique(mesh[before]), np.unique(mesh[after])
            between = np.full((len(meshes), len(meshes)), np.inf)
            between[np.ix_(sources, targets)] = model.conversions_s(
                index, [meshes[one] for one in sources], [meshes[one] for one in targets], size
            )
            converted = between[np.ix_(mesh, mesh)]
            sent = [setting.shared_pace.beside(model.transfer_s(index, s, size)) for s in heads]
            going[:], entering[:] = np.inf, np.inf
            for had in borders.memories:
                rows = slice(had * count, (had + 1) * count)
                for table, has in ((going, borders.going(index, had)), (entering, borders.entering(index))):
                    table[rows, has * count : (has + 1) * count] = converted
            kept[:] = np.tile(self.columns.added_bytes(places), (len(borders.memories),) * 2)
            receiving[:] = np.tile(sent, len(borders.memories))[:, None]
        return {"move_s": going, "move_kept": kept, "enter_s": entering, "receive_s": receiving}


_FIGURES = ("step_s", "state", "kept", "transient", "update", "amount", "toll_s", "start_s")
"""Of a layer under a strategy; see `Chain` and `Opening`."""


def _once(cost: LayerCost) -> tuple[Any, ...]:
    """`_FIGURES`."""
    behind, within = cost.exposed(Front(0.0)).seconds, cost.exposed(Front(sys.float_info.max)).seconds
    return (
        cost.once_s + behind,
        cost.state_bytes,
        cost.saved_bytes,
        cost.extra_bytes,
        cost.update_bytes,
        cost.bucket_bytes,
        within - behind,
        np.where(cost.bucket_bytes > 0, cost.start_s, 0.0),
    )


def _numbered(keys: Sequence[Hashable]) -> tuple[np.ndarray, list[int]]:
    """A number for each key, the same for equal ones, and the position of the first of each."""
    firsts: dict[Hashable, int] = {}
    for position, key in enumerate(keys):
        firsts.setdefault(key, position)
    numbers = {key: number for number, key in enumerate(firsts)}
    return np.array([numbers[key] for key in keys]), list(firsts.values())


def _stacked(rows: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}
