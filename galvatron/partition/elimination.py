"""The cheapest labels by elimination: choice after choice is replaced by what it costs its neighbours.

The choices of a layer hang together as its ops do, nearly in a chain, so each has few others beside it. One is taken
out by a table that says, for every labelling of these, what is the best it can do and what that costs (Bertelè and
Brioschi, *Nonserial Dynamic Programming*, 1972). The time is linear in the number of ops as long as few values are
alive at once. Where many are, tables would become large, and the integer program is the way.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import combinations

import numpy as np

from galvatron.partition.choosing import Delivery, Problem
from galvatron.partition.modes import AxisState

_LARGEST = 1 << 20
"""Entries of a table."""

_MOST_SETS = 64
"""Of states in which a value may be there for its readers."""

_UNIT_S = 1e-13
"""Prices are whole numbers of it: their sums are exact, and of choices that cost the same the first is taken."""

_Table = tuple[tuple[int, ...], np.ndarray]
"""What each labelling of some choices costs."""


def labels_by_elimination(problem: Problem) -> tuple[list[int], float] | None:
    """The cheapest label of every choice, and what they cost together in seconds (infinite where nothing is possible);
    None where tables would become too large."""
    sizes = [len(prices) for prices in problem.choices]
    tables: list[_Table] = [((i,), _whole_units(prices)) for i, prices in enumerate(problem.choices)]
    for delivery in problem.deliveries:
        if len(delivery.read) == 1:
            tables.append(_alone(delivery))
        elif delivery.read:
            sets = _sets(delivery)
            if len(sets) > _MOST_SETS:
                return None
            tables += _shared(delivery, sets, len(sizes))
            sizes.append(len(sets))
    found = _Elimination(sizes, tables).run()
    return None if found is None else (found[0][: len(problem.choices)], found[1] * _UNIT_S)


def _whole_units(prices: Sequence[float] | Sequence[Sequence[float]]) -> np.ndarray:
    return np.rint(np.asarray(prices, float) / _UNIT_S)


def _alone(delivery: Delivery) -> _Table:
    """A value with one reader, by the labels of its maker and of the reader."""
    (reader,) = delivery.read
    places = {state: place for place, state in enumerate(delivery.stops)}
    by_set = _by_set(delivery)
    wanted = [1 << places[state] for state in reader.states]
    return (delivery.made.choice, reader.choice), np.array([by_set[source][wanted] for source in delivery.made.states])


def _sets(delivery: Delivery) -> list[int]:
    """The sets of states that the readers of a value may need together, as bits by the places of the states."""
    wanted = range(len(delivery.wanted))
    counts = range(1, min(len(wanted), len(delivery.read)) + 1)
    if sum(math.comb(len(wanted), count) for count in counts) > _MOST_SETS:
        return [0] * (_MOST_SETS + 1)
    return [sum(1 << place for place in some) for count in counts for some in combinations(wanted, count)]


def _shared(delivery: Delivery, sets: list[int], there: int) -> Iterator[_Table]:
    """A value with several readers: the states in which it is there are a choice of its own, `there`."""
    places = {state: place for place, state in enumerate(delivery.stops)}
    by_set = _by_set(delivery)
    yield (delivery.made.choice, there), np.array([by_set[source][sets] for source in delivery.made.states])
    for reader in delivery.read:
        missing = [[0.0 if some >> places[state] & 1 else np.inf for state in reader.states] for some in sets]
        yield (there, reader.choice), np.array(missing)


def _by_set(delivery: Delivery) -> dict[AxisState, np.ndarray]:
    """By the state in which a value is made, what it costs to have it in each set of stops."""
    stops, price = delivery.stops, delivery.price
    between = tuple(tuple(0.0 if a == b else price(a, b) for b in stops) for a in stops)
    rows = dict(zip(stops, between, strict=True))
    sources = {
        source: rows.get(source) or tuple(price(source, b) for b in stops)
        for source in dict.fromkeys(delivery.made.states)
    }
    return {source: _prices_of_sets(row, between) for source, row in sources.items()}


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


class _Elimination:
    """Choices of so many labels each, and the tables whose sum is to be least."""

    def __init__(self, sizes: Sequence[int], tables: Iterable[_Table]) -> None:
        self._sizes = sizes
        self._tables: dict[int, _Table] = {}
        self._of: list[set[int]] = [set() for _ in sizes]
        self._count = 0
        self._beside: list[frozenset[int]] = [frozenset() for _ in sizes]
        for choices, table in tables:
            self._add(choices, table)

    def run(self) -> tuple[list[int], float] | None:
        """The labels with the least sum, and that sum; None where a table would be too large."""
        left = set(range(len(self._sizes)))
        weights = [self._weigh(choice) for choice in left]
        waiting = [(weight, choice) for choice, weight in enumerate(weights)]
        heapq.heapify(waiting)
        taken: list[tuple[int, tuple[int, ...], np.ndarray]] = []
        least = 0.0
        while waiting:
            weight, choice = heapq.heappop(waiting)
            if choice not in left or weight != weights[choice]:
                continue
            if weight > _LARGEST:
                return None
            left.remove(choice)
            others, best, rest = self._without(choice)
            taken.append((choice, others, best))
            if others:
                self._add(others, rest)
            else:
                least += float(rest)
            for other in others:
                weights[other] = self._weigh(other)
                heapq.heappush(waiting, (weights[other], other))
        labels = [0] * len(self._sizes)
        for choice, others, best in reversed(taken):
            labels[choice] = int(best[tuple(labels[other] for other in others)])
        return labels, least

    def _add(self, choices: tuple[int, ...], table: np.ndarray) -> None:
        """Adds a table; those of one label have no say in it."""
        several = tuple(c for c in choices if self._sizes[c] > 1)
        table = table.reshape([self._sizes[c] for c in several])
        self._tables[self._count] = (several, table)
        for choice in several or choices[:1]:
            self._of[choice].add(self._count)
        self._count += 1

    def _weigh(self, choice: int) -> int:
        """The entries of the table of a choice and all those beside it."""
        self._beside[choice] = frozenset(c for i in self._of[choice] for c in self._tables[i][0]) - {choice}
        return math.prod((self._sizes[c] for c in self._beside[choice]), start=self._sizes[choice])

    def _without(self, choice: int) -> tuple[tuple[int, ...], np.ndarray, np.ndarray]:
        """The choices beside one, its best label for each labelling of these, and what that costs."""
        others = tuple(sorted(self._beside[choice]))
        axes = {c: axis for axis, c in enumerate((*others, choice))}
        total = np.zeros([self._sizes[c] for c in axes])
        for index in sorted(self._of[choice]):
            choices, table = self._tables.pop(index)
            order = sorted(range(len(choices)), key=lambda i: axes[choices[i]])
            shape = [1] * len(axes)
            for c in choices:
                shape[axes[c]] = self._sizes[c]
            total = total + table.transpose(order).reshape(shape)
            for c in choices:
                self._of[c].discard(index)
        return others, total.argmin(-1).astype(np.uint16), total.min(-1)
