"""Where the boxes of a picture are: in rows, each below all that it reads, with few crossings and short lines.

The steps are those of Sugiyama et al. (1981): rows by the longest path, places within rows by the mean of neighbours,
swept down and up, and then positions. A line past rows has a bend in each of them, which all readers of a box share, so
that a value that many read is one line with branches.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import networkx

Node = Hashable

SWEEPS = 16
STRAIGHT = 8.0
"""How much more a bend matters than a box: lines that go past rows are straight."""

GAP = 18.0
"""Between neighbours in a row."""


@dataclass(frozen=True)
class Arrangement:
    """Where everything is.

    Attributes:
        rows: the row of each box, from 0 on.
        centres: of each box, along its row.
        ways: of each edge the boxes and bends that it goes through, as row and place along it.
        width: of all.
    """

    rows: dict[Node, int]
    centres: dict[Node, float]
    ways: dict[tuple[Node, Node], list[tuple[int, float]]]
    width: float

    @property
    def height(self) -> int:
        """The number of rows."""
        return max(self.rows.values(), default=-1) + 1


def arranged(graph: networkx.DiGraph, widths: Mapping[Any, float]) -> Arrangement:
    """A place for every node of an acyclic graph."""
    rows = _rows(graph)
    bent = networkx.DiGraph()
    bent.add_nodes_from(graph.nodes)
    ways: dict[tuple[Node, Node], list[Node]] = {}
    for first, second in graph.edges:
        bends: list[Node] = [("bend", first, row) for row in range(rows[first] + 1, rows[second])]
        rows.update((bend, row) for bend, row in zip(bends, range(rows[first] + 1, rows[second]), strict=True))
        ways[first, second] = [first, *bends, second]
        networkx.add_path(bent, ways[first, second])
    by_row: list[list[Node]] = [[] for _ in range(max(rows.values(), default=-1) + 1)]
    for node in bent.nodes:
        by_row[rows[node]].append(node)
    _order(bent, by_row)
    centres = _centres(bent, by_row, {node: widths.get(node, 0.0) for node in bent.nodes})
    return Arrangement(
        rows={node: rows[node] for node in graph.nodes},
        centres={node: centres[node] for node in graph.nodes},
        ways={edge: [(rows[node], centres[node]) for node in way] for edge, way in ways.items()},
        width=max((centre + widths.get(node, 0.0) / 2 for node, centre in centres.items()), default=0.0),
    )


def _rows(graph: networkx.DiGraph) -> dict[Node, int]:
    """By the longest path to it; what reads nothing is right above its first reader."""
    rows: dict[Node, int] = {}
    for node in networkx.topological_sort(graph):
        rows[node] = max((rows[before] + 1 for before in graph.predecessors(node)), default=0)
    for node in [one for one in graph.nodes if not graph.in_degree(one) and graph.out_degree(one)]:
        rows[node] = max(0, min(rows[reader] for reader in graph.successors(node)) - 1)
    return rows


def _order(graph: networkx.DiGraph, by_row: list[list[Node]]) -> None:
    """Sorts every row by the mean place of neighbours in the one above, then below, in turns."""
    place = {node: float(index) for row in by_row for index, node in enumerate(row)}
    for sweep in range(SWEEPS):
        down = sweep % 2 == 0
        neighbours = graph.predecessors if down else graph.successors
        for row in by_row if down else reversed(by_row):
            wanted = {node: _mean([place[other] for other in neighbours(node)], place[node]) for node in row}
            row.sort(key=wanted.__getitem__)
            place.update((node, float(index)) for index, node in enumerate(row))


def _centres(graph: networkx.DiGraph, by_row: list[list[Node]], widths: Mapping[Node, float]) -> dict[Node, float]:
    """Each as near as can be to the mean of its neighbours above, then below, in turns; the least is 0 at its edge."""
    centres: dict[Node, float] = {}
    weights = {node: 1.0 if widths[node] else STRAIGHT for node in graph.nodes}

    def place(row: list[Node], wanted: Sequence[float]) -> None:
        found = _apart(wanted, [widths[node] for node in row], [weights[node] for node in row])
        centres.update(zip(row, found, strict=True))

    for row in by_row:
        place(row, [0.0] * len(row))
    for sweep in range(SWEEPS):
        down = sweep % 2 == 0
        neighbours = graph.predecessors if down else graph.successors
        for row in by_row if down else reversed(by_row):
            place(row, [_mean([centres[other] for other in neighbours(node)], centres[node]) for node in row])
    least = min((centres[node] - widths[node] / 2 for row in by_row for node in row), default=0.0)
    return {node: centre - least for node, centre in centres.items()}


def _apart(wanted: Sequence[float], widths: Sequence[float], weights: Sequence[float]) -> list[float]:
    """The places nearest to the wanted ones, by weighted squares, at which neighbours are `GAP` apart: an isotonic
    regression, by pooling what is too near."""
    offsets, at = [], 0.0
    for index, width in enumerate(widths):
        at += (width + widths[index - 1]) / 2 + GAP if index else 0.0
        offsets.append(at)
    pools: list[tuple[float, float, int]] = []
    for place, offset, weight in zip(wanted, offsets, weights, strict=True):
        mean, count = place - offset, 1
        while pools and pools[-1][0] > mean:
            other, heavy, more = pools.pop()
            mean = (mean * weight + other * heavy) / (weight + heavy)
            weight, count = weight + heavy, count + more
        pools.append((mean, weight, count))
    means = [mean for mean, _, count in pools for _ in range(count)]
    return [mean + offset for mean, offset in zip(means, offsets, strict=True)]


def _mean(values: Sequence[float], otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise
