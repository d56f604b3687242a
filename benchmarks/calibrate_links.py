"""Fits the links of a node to measured collectives, and shows how well the machine's formula tells these.

Read are the tables of vidur's profiles (microsoft/vidur, MIT, `data/profiling/network`, thinned): all-reduce and
send-receive on nodes of A100s and H100s. `size` in them is bytes: as elements of two bytes, eight A100s would exchange
335 GB/s over links of 300. Every other size is fitted, the ones between are held out. The rate of long messages is not
fitted where a published one is given, since the longest message of the tables is 61 MB.

    python benchmarks/calibrate_links.py [--data DIR]
"""

from __future__ import annotations

import argparse
import csv
import math
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from scipy.optimize import minimize

from galvatron.ir.cluster import Cluster
from galvatron.ir.layout import Axis
from galvatron.ir.network import Level
from galvatron.machine import Machine

ANY_DEVICE = Cluster.parse("a100-80g:1x1").device
PUBLISHED = {"a100": 235e9, "h100": 367.2e9}
"""Bus bandwidth of long messages in a node: stas00/ml-engineering (744d01e1) network/README.md."""

FLAT = Level("node", 0, 0.0, 5e-6), Level("network", 0, 24e9, 6e-6)
"""What stood before: the published rates, and a latency for each step."""

LEAST_STEP_S = 0.2e-6
"""What a step takes at least: below it, start and steps cannot be told apart."""

LONG = 2**20
"""Bytes from which on an error counts as one of long messages."""

Levels = tuple[Level, Level]


@dataclass(frozen=True)
class Row:
    """One measured collective: ranks of the group, how many of them in a node, and bytes."""

    kind: str
    ranks: int
    in_node: int
    size: float
    seconds: float

    @property
    def shape(self) -> tuple[str, int, int]:
        return self.kind, self.ranks, self.in_node


def read(folder: Path, card: str) -> list[Row]:
    """The rows of both tables of a card, by shape and size."""
    rows = []
    for name, kind in (("allreduce", "all_reduce"), ("sendrecv", "p2p")):
        with (folder / f"{name}_{card}_dgx.csv").open() as table:
            for row in csv.DictReader(table):
                ranks, in_node = int(row["ranks"]), int(row["devices_per_node"])
                rows.append(Row(kind, ranks, in_node, float(row["size"]), float(row["median_ms"]) * 1e-3))
    return sorted(rows, key=lambda row: (row.shape, row.size))


def errors(rows: Sequence[Row], levels: Levels) -> list[float]:
    """Logarithms of predicted over measured seconds, on a node and a network that are as large as a row's group."""
    found = []
    for shape, same in groupby(rows, key=lambda row: row.shape):
        kind, ranks, in_node = shape
        sizes = replace(levels[0], parts=in_node), replace(levels[1], parts=ranks // in_node)
        machine = Machine(Cluster("measured", ANY_DEVICE, sizes))
        axis = Axis("x", ranks, 1)
        found.extend(math.log(machine.collective_s(kind, row.size, axis) / row.seconds) for row in same)
    return found


def halves(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Every other size of each shape, and the sizes between."""
    fitted: list[Row] = []
    held: list[Row] = []
    for _, same in groupby(rows, key=lambda row: row.shape):
        for index, row in enumerate(same):
            (held if index % 2 else fitted).append(row)
    return fitted, held


def fit(
    rows: Sequence[Row], start: dict[str, float], levels_of: Callable[..., Levels]
) -> tuple[Levels, dict[str, float]]:
    """The levels whose errors are least in sum, by the logarithms of some figures of theirs."""

    def build(logarithms: Sequence[float]) -> Levels:
        return levels_of(**dict(zip(start, map(math.exp, logarithms), strict=True)))

    def loss(logarithms: Sequence[float]) -> float:
        return sum(map(abs, errors(rows, build(logarithms))))

    options = {"maxiter": 3000, "maxfev": 3000, "xatol": 1e-3, "fatol": 1e-3}
    best = minimize(loss, [math.log(value) for value in start.values()], method="Nelder-Mead", options=options).x
    return build(best), dict(zip(start, map(math.exp, best), strict=True))


def calibrate(rows: Sequence[Row], rate: float, *, quick: bool) -> tuple[Levels, dict[str, float]]:
    """Levels fitted to half of the rows: first the node, then what crosses it.

    The rate of the network and its number of cards are of the machines that were measured, which had slower ones than
    such nodes are sold with; they stand for no preset.

    Args:
        rate: published, of long messages in a node.
        quick: whether short messages have a protocol of their own.
    """
    inside = [row for row in rows if row.ranks == row.in_node]
    across = [row for row in rows if row.ranks != row.in_node]
    two = {"quick_bytes_per_s": rate / 2, "quick_step_s": 0.5e-6} if quick else {}
    start = {"latency_s": 10e-6, "start_s": 30e-6, "step_s": 4e-6 if quick else 0.5e-6} | two

    def node(**figures: Any) -> Levels:
        steps: dict[str, Any] = {
            name: max(LEAST_STEP_S, value) for name, value in figures.items() if name.endswith("step_s")
        }
        return Level("node", 0, rate, **(figures | steps)), FLAT[1]

    (level, _), figures = fit(halves(inside)[0], start, node)
    start = {"bytes_per_s": 10e9, "latency_s": 20e-6, "step_s": 5e-6}

    def crossed(cards: int) -> tuple[Levels, dict[str, float]]:
        def network(**figures: Any) -> Levels:
            return level, Level("network", 0, cards=cards, start_s=level.start_s, **figures)

        return fit(halves(across)[0], start, network)

    tried = {cards: crossed(cards) for cards in (1, 2, 4, 8)}
    cards = min(tried, key=lambda cards: sum(map(abs, errors(halves(across)[0], tried[cards][0]))))
    levels, crossing = tried[cards]
    crossing |= {"cards": cards}
    return levels, {f"node {k}": v for k, v in figures.items()} | {f"network {k}": v for k, v in crossing.items()}


def summary(found: Sequence[float]) -> str:
    """Median and ninth decile of relative errors."""
    sizes = sorted(abs(math.exp(error) - 1) for error in found)
    return f"{statistics.median(sizes):.1%} {sizes[int(0.9 * (len(sizes) - 1))]:.0%}" if sizes else "-"


def show(card: str, rows: Sequence[Row], before: Levels, after: Levels) -> None:
    table = Table(title=f"{card}: errors, median and ninth decile")
    headings = ("collective", "before", "fitted half", "held out", "long before", "long, held out")
    for heading in headings:
        table.add_column(heading, no_wrap=True)
    shapes = [list(same) for _, same in groupby(rows, key=lambda row: row.shape)]
    for same in (*shapes, list(rows)):
        kind, ranks, in_node = same[0].shape
        name = f"{kind}, {ranks} ranks, {in_node} in a node" if same in shapes else "all"
        fitted, held = halves(same)
        long, long_held = ([row for row in some if row.size >= LONG] for some in (same, held))
        columns = [(same, before), (fitted, after), (held, after), (long, before), (long_held, after)]
        table.add_row(name, *(summary(errors(some, levels)) for some, levels in columns))
    Console(width=max(120, Console().width)).print(table)


def main(words: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared/data/kernels")
    folder = parser.parse_args(words).data
    for card, rate in PUBLISHED.items():
        rows = read(folder, card)
        levels, figures = calibrate(rows, rate, quick=card == "a100")
        show(card, rows, (replace(FLAT[0], bytes_per_s=rate), FLAT[1]), levels)
        for name, figure in figures.items():
            print(f"{card} {name} = {figure:.3g}")


if __name__ == "__main__":
    main(sys.argv[1:])
