"""The cheapest labels by elimination: choice after choice is replaced by what it costs its neighbours.

The choices of a layer hang together as its ops do, nearly in a chain, so each has few others beside it. One is taken
out by a table that says, for every labelling of these, what is the best it can do and what that costs (Bertelè and
Brioschi, *Nonserial Dynamic Programming*, 1972). The time is linear in the number of ops as long as few values are
alive at once. Where many are, tables would become large, and the integer program is the way.

In which order choices are taken out depends on the problem alone, and is found once for all quotes.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, combinations

import numpy as np

from galvatron.partition.choosing import Delivery, Problem, Quote

_LARGEST = 1 << 20
"""Entries of a table."""

_MOST_SETS = 64
"""Of states in which a value may be there for its readers."""

_UNIT_S = 1e-13
"""Prices are whole numbers of it: their sums are exact, and of choices that cost the same the first is taken."""


class Elimination:
    """A problem, and the order in which its choices are taken out."""

    def __init__(self, problem: Problem) -> None:
        sizes = list(problem.choices)
        tables: list[tuple[int, ...]] = [(i,) for i in range(len(sizes))]
        self._ends = list(accumulate(sizes, initial=0))
        self._delivered: list[_Delivered] = []
        self._missing: list[np.ndarray] = []
        self.order: tuple[_Step, ...] | None = None
        """None where tables would become too large."""
        missing: list[tuple[int, ...]] = []
        for delivery in problem.deliveries:
            if len(delivery.read) == 1:
                tables.append((delivery.made.choice, delivery.read[0].choice))
                sets = [1 << delivery.stops.index(state) for state in delivery.read[0].states]
            else:
                sets = _sets(delivery)
                if len(sets) > _MOST_SETS:
                    return
                there = len(sizes)  # the states in which it is there are a choice of its own
                sizes.append(len(sets))
                tables.append((delivery.made.choice, there))
                missing += ((there, reader.choice) for reader in delivery.read)
                self._missing += _missing(delivery, sets)
            self._delivered.append(_delivered_in(delivery, sets))
        self._choices = len(problem.choices)
        self.order = _Order(sizes).found([*tables, *missing])

    def labels(self, quote: Quote) -> tuple[list[int], float]:
        """The cheapest label of every choice, and what they cost together in seconds (infinite where nothing is
        possible)."""
        assert self.order is not None
        flat = _whole_units([price for prices in quote.choices for price in prices])
        tables = [flat[start:end] for start, end in zip(self._ends, self._ends[1:], strict=False)]
        tables += map(_table, self._delivered, quote.deliveries)
        tables += self._missing
        best: list[np.ndarray] = []
        least = 0.0
        for step in self.order:
            total = np.zeros(step.shape)
            for number, transposed, shape in step.tables:
                table = tables[number]
                total += (table.reshape(transposed[0]).transpose(transposed[1]) if transposed else table).reshape(shape)
            best.append(total.argmin(-1))
            rest = total.min(-1)
            tables.append(rest)
            least += 0.0 if step.others else float(rest)
        labels = [0] * len(best)
        for step, label in zip(reversed(self.order), reversed(best), strict=True):
            labels[step.choice] = int(label[tuple(labels[other] for other in step.others)])
        return labels[: self._choices], least * _UNIT_S


def _whole_units(prices: Sequence[float] | Sequence[Sequence[float]]) -> np.ndarray:
    return np.rint(np.asarray(prices, float) / _UNIT_S)


def _sets(delivery: Delivery) -> list[int]:
    """The sets of states that the readers of a value may need together, as bits by the places of the states."""
    wanted = range(len(delivery.wanted))
    counts = range(1, min(len(wanted), len(delivery.read)) + 1)
    if sum(math.comb(len(wanted), count) for count in counts) > _MOST_SETS:
        return [0] * (_MOST_SETS + 1)
    return [sum(1 << place for place in some) for count in counts for some in combinations(wanted, count)]


def _missing(delivery: Delivery, sets: list[int]) -> list[np.ndarray]:
    """For each reader, by the states in which a value is there and by its label: nothing, or infinity where it is not
    there as it is needed."""
    places = {state: place for place, state in enumerate(delivery.stops)}
    return [
        np.array([[0.0 if some >> places[state] & 1 else np.inf for state in reader.states] for some in sets])
        for reader in delivery.read
    ]


@dataclass(frozen=True, eq=False)
class _Delivered:
    """How the table of a delivery follows from the prices of its steps: one object for all that are equal.

    It is by the label of the maker and by that of the only reader, or by the states that several need. `rows` are the
    numbers of the sources by label; `sets` those of stops, as bits.
    """

    sources: int
    stops: int
    rows: tuple[int, ...]
    sets: tuple[int, ...]


def _delivered_in(delivery: Delivery, sets: list[int]) -> _Delivered:
    sources = delivery.steps.sources
    rows = tuple(sources.index(state) for state in delivery.made.states)
    return _delivered(len(sources), len(delivery.stops), rows, tuple(sets))


@lru_cache(maxsize=1 << 14)
def _delivered(sources: int, stops: int, rows: tuple[int, ...], sets: tuple[int, ...]) -> _Delivered:
    return _Delivered(sources, stops, rows, sets)


@lru_cache(maxsize=1 << 14)
def _table(of: _Delivered, prices: tuple[float, ...]) -> np.ndarray:
    """What it costs in whole units to deliver a value."""
    count = of.stops
    rows = tuple(prices[i : i + count] for i in range(0, len(prices), count))
    between = rows[of.sources :]
    by_set = [_prices_of_sets(row, between) for row in rows[: of.sources]]
    return np.array([by_set[row] for row in of.rows])[:, of.sets]


@lru_cache(maxsize=1 << 12)
def _prices_of_sets(source: tuple[float, ...], between: tuple[tuple[float, ...], ...]) -> np.ndarray:
    """By sets of stops, what it costs in whole units to have a value in all of these states.

    Args:
        source: the prices from the state in which it is made to every stop.
        between: those between all stops.
    """
    count = len(source)
    rows = _whole_units(between)
    nearest = {0: _whole_units(source)}  # from all that is there to each stop
    grown = np.full(1 << count, np.inf)
    grown[0] = 0.0
    for have in range(1 << count):
        if have:
            lowest = (have & -have).bit_length() - 1
            nearest[have] = np.minimum(nearest[have & (have - 1)], rows[lowest])
        for stop in range(count):
            if not have >> stop & 1:
                more = have | 1 << stop
                grown[more] = min(grown[more], grown[have] + nearest[have][stop])
    everything = np.arange(1 << count)
    for stop in range(count):  # to have more than is asked for may be cheaper: copies in between
        grown = np.minimum(grown, grown[everything | 1 << stop])
    return grown


_Transposed = tuple[tuple[int, ...], tuple[int, ...]]
"""The shape of a table, and the order of its axes."""


@dataclass(frozen=True)
class _Step:
    """A choice that is taken out, by the labels of the `others` beside it.

    Each of `tables`, by number, is brought to `shape`; what is left is the next table.
    """

    choice: int
    others: tuple[int, ...]
    shape: tuple[int, ...]
    tables: tuple[tuple[int, _Transposed | None, tuple[int, ...]], ...]


class _Order:
    """Finds an order for choices of so many labels each: always that with the smallest table comes next."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self._sizes = sizes
        self._tables: dict[int, tuple[int, ...]] = {}
        self._of: list[set[int]] = [set() for _ in sizes]
        self._count = 0
        self._beside: list[frozenset[int]] = [frozenset() for _ in sizes]

    def found(self, tables: Iterable[tuple[int, ...]]) -> tuple[_Step, ...] | None:
        """The steps, given the choices of each table; None where a table would be too large."""
        for choices in tables:
            self._add(choices)
        left = set(range(len(self._sizes)))
        weights = [self._weigh(choice) for choice in left]
        waiting = [(weight, choice) for choice, weight in enumerate(weights)]
        heapq.heapify(waiting)
        steps: list[_Step] = []
        while waiting:
            weight, choice = heapq.heappop(waiting)
            if choice not in left or weight != weights[choice]:
                continue
            if weight > _LARGEST:
                return None
            left.remove(choice)
            steps.append(self._without(choice))
            self._add(steps[-1].others)
            for other in steps[-1].others:
                weights[other] = self._weigh(other)
                heapq.heappush(waiting, (weights[other], other))
        return tuple(steps)

    def _add(self, choices: tuple[int, ...]) -> None:
        """Adds a table; choices of one label have no say in it."""
        several = tuple(c for c in choices if self._sizes[c] > 1)
        self._tables[self._count] = several
        for choice in several or choices[:1]:
            self._of[choice].add(self._count)
        self._count += 1

    def _weigh(self, choice: int) -> int:
        """The entries of the table of a choice and all those beside it."""
        self._beside[choice] = frozenset(c for i in self._of[choice] for c in self._tables[i]) - {choice}
        return math.prod((self._sizes[c] for c in self._beside[choice]), start=self._sizes[choice])

    def _without(self, choice: int) -> _Step:
        """Takes a choice out."""
        others = tuple(sorted(self._beside[choice]))
        axes = {c: axis for axis, c in enumerate((*others, choice))}
        tables: list[tuple[int, _Transposed | None, tuple[int, ...]]] = []
        for number in sorted(self._of[choice]):
            choices = self._tables.pop(number)
            order = tuple(sorted(range(len(choices)), key=lambda i: axes[choices[i]]))
            shape = [1] * len(axes)
            for c in choices:
                shape[axes[c]] = self._sizes[c]
            own = tuple(self._sizes[c] for c in choices)
            moved = (own, order) if order != tuple(range(len(order))) else None
            tables.append((number, moved, tuple(shape)))
            for c in choices:
                self._of[c].discard(number)
        return _Step(choice, others, tuple(self._sizes[c] for c in axes), tuple(tables))
