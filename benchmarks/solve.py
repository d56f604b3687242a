"""One strategy per layer under one budget: `galvatron.solver.solve` beside a plain table program on the same tables.

    python benchmarks/solve.py [--repeats 5] [--tables llama,equal,...]

The peer is the dynamic program that one writes first: the least time of the first layers for each strategy of the last
one and each whole number of units of memory, O(layers · units · strategies²). It is compiled by the system's C
compiler, with its innermost loop over the units, so that it is vectorised. Both get the same tables, whose bytes are
whole numbers of units, and must find the same time. Compared is CPU time of the process, warm, in turns.

`llama` are the costs of Llama-2-7B on 8 devices, as the cost model tells them. The other tables are drawn at random:
`equal` are runs of equal layers, `unlike` layers that have nothing in common. The last two are made to be hard: in
`line` nearly all strategies are equally good at the best price of memory, in `sums` all are, so that only trying sums
of bytes tells choices apart.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
from accuracy.models import Shape
from accuracy.programs import program_of
from common.results import busy, conditions, entry, save
from rich.console import Console
from rich.table import Table

from galvatron.costs.estimate import cost_model
from galvatron.ir.cluster import Cluster
from galvatron.passes.pipeline import Pipeline
from galvatron.solver import solve

LAYERS, STRATEGIES, UNITS = (32, 96), 44, 36_000
LLAMA = Shape("llama", 32, 4096, 32, 4096, 32000, 11008, 32, flash=True, tied=False)
SPACE = "annotate-costs,enumerate-strategies{roles=[dp,tp,tp+sp],zero=[0,2,3],recompute=[none,full,selective],\
pipeline_degrees=[1]},prune"
BATCH, MICRO_BATCHES = 64, 8

PEER = r"""
#include <stdlib.h>

/* Returns the least time, or a negative number if nothing fits; `choice` is the strategy of each layer. */
double solve(int layers, int strategies, int units, const double *time, const int *memory, const double *transition,
             int *choice) {
    size_t row = (size_t)units + 1, size = (size_t)strategies * row;
    double *before = malloc(size * sizeof(double)), *after = malloc(size * sizeof(double));
    unsigned char *from = malloc((size_t)layers * size);
    for (int s = 0; s < strategies; s++)
        for (size_t m = 0; m < row; m++)
            before[s * row + m] = m >= (size_t)memory[s] ? time[s] : 1e300;
    for (int layer = 1; layer < layers; layer++) {
        const double *step = transition + (size_t)layer * strategies * strategies;
        for (int t = 0; t < strategies; t++) {
            unsigned char *origin = from + (size_t)layer * size + t * row;
            int used = memory[layer * strategies + t];
            double own = time[layer * strategies + t];
            double *result = after + t * row;
            for (size_t m = 0; m < row; m++) result[m] = 1e300;
            if ((size_t)used >= row) continue;
            for (int s = 0; s < strategies; s++) {
                const double *source = before + s * row;
                double moved = step[s * strategies + t] + own;
                unsigned char *chosen = origin + used;
                double *target = result + used;
                for (size_t m = 0; m < row - used; m++) {
                    double sum = source[m] + moved;
                    chosen[m] = sum < target[m] ? (unsigned char)s : chosen[m];
                    target[m] = sum < target[m] ? sum : target[m];
                }
            }
        }
        double *other = before; before = after; after = other;
    }
    int last = 0;
    for (int s = 1; s < strategies; s++)
        if (before[s * row + units] < before[last * row + units]) last = s;
    double least = before[last * row + units];
    size_t left = units;
    for (int layer = layers - 1; least < 1e299 && layer >= 0; layer--) {
        choice[layer] = last;
        int previous = layer ? from[(size_t)layer * size + last * row + left] : 0;
        left -= memory[layer * strategies + last];
        last = previous;
    }
    free(before); free(after); free(from);
    return least < 1e299 ? least : -1.0;
}
"""

Tables = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Seconds, units of memory and seconds of transitions, as `solve` takes them; the budget is `UNITS`."""


@dataclass(frozen=True)
class Row:
    """CPU seconds of both on the same tables: medians and quartiles; and what they found."""

    tables: str
    layers: int
    strategies: int
    units: int
    solve_s: float
    solve_quartiles_s: tuple[float, float]
    peer_s: float
    peer_quartiles_s: tuple[float, float]
    ratio: float
    step_s: float
    peer_step_s: float


@cache
def peer() -> Callable[[Tables], float]:
    """The table program, compiled."""
    folder = Path(tempfile.mkdtemp())
    source, library = folder / "peer.c", folder / "peer.so"
    source.write_text(PEER)
    options = ["-O3", "-march=native", "-shared", "-fPIC"]
    subprocess.run(["cc", *options, "-o", str(library), str(source)], check=True)
    function = ctypes.CDLL(str(library)).solve
    function.restype = ctypes.c_double

    def run(tables: Tables) -> float:
        seconds, units, moves = (np.ascontiguousarray(t) for t in tables)
        memory = units.astype(np.int32)
        choice = np.zeros(len(seconds), dtype=np.int32)
        pointers = (t.ctypes.data_as(ctypes.c_void_p) for t in (seconds, memory, moves, choice))
        return float(function(*seconds.shape, UNITS, *pointers))

    return run


def llama(layers: int) -> Tables:
    """Seconds of a step and bytes, with as many of the equal blocks in the middle as make so many layers."""
    kinds, seconds, memory, moves = _costs_of_llama()
    block = max(set(kinds), key=kinds.count)
    first, last = kinds.index(block), len(kinds) - kinds[::-1].index(block)
    head, tail = kinds[:first], kinds[last:]
    chain = head + [block] * (layers - len(head) - len(tail)) + tail
    steps = [0 * moves[block, block], *(moves[pair] for pair in itertools.pairwise(chain))]
    return quantised(seconds[chain], memory[chain], np.stack(steps))


@cache
def _costs_of_llama() -> tuple[list[int], np.ndarray, np.ndarray, dict[tuple[int, int], np.ndarray]]:
    program = replace(program_of(LLAMA, "bf16"), cluster=Cluster.parse("a100-80g:1x8"), batch_size=BATCH)
    program = Pipeline.parse(SPACE).run(program)
    size = BATCH // MICRO_BATCHES
    common = set.intersection(*(set(c.strategies) for c in program.candidates))
    possible = [s for s in program.candidates[0].strategies if s in common and size % s.degree("dp") == 0]
    options = [possible[round(i)] for i in np.linspace(0, len(possible) - 1, min(STRATEGIES, len(possible)))]
    model = cost_model(program)
    names = list(dict.fromkeys(model.kinds()))
    kinds = [names.index(kind) for kind in model.kinds()]
    costs = [[model.layer(kinds.index(k), s, size, ()) for s in options] for k in range(len(names))]
    seconds = [[MICRO_BATCHES * c.micro_batch_s + c.once_s + c.sync_s + c.publish_s for c in row] for row in costs]
    memory = [[c.state_bytes + c.saved_bytes for c in row] for row in costs]
    moves = {
        (kinds[i - 1], kinds[i]): MICRO_BATCHES
        * np.array([[model.conversion_s(i, before, after, size) for after in options] for before in options])
        for i in range(1, len(kinds))
    }
    return kinds, np.array(seconds), np.array(memory), moves


def equal(layers: int) -> Tables:
    """A first layer, equal ones, and a last one; transitions cost something unless a strategy stays."""
    random = np.random.default_rng(1)
    shape = (STRATEGIES, STRATEGIES)
    own = random.uniform(1, 2, STRATEGIES)
    units = random.uniform(0.8, 1.2, STRATEGIES) / own**2
    seconds, memory = np.tile(own, (layers, 1)), np.tile(units, (layers, 1))
    seconds[0], seconds[-1], memory[0], memory[-1] = 0.3 * own, 0.6 * own, 2 * units, 2 * units
    moves = random.uniform(0.02, 0.08, shape) * (1 - np.eye(STRATEGIES))
    return quantised(seconds, memory, np.broadcast_to(moves, (layers, *shape)).copy())


def unlike(layers: int) -> Tables:
    """Nothing is like anything else."""
    random = np.random.default_rng(2)
    shape = (layers, STRATEGIES)
    moves = random.uniform(0, 0.3, (*shape, STRATEGIES))
    return quantised(random.uniform(1, 2, shape), random.uniform(1, 20, shape), moves)


def line(layers: int) -> Tables:
    """Seconds fall nearly in proportion to the bytes that are taken."""
    random = np.random.default_rng(3)
    shape = (layers, STRATEGIES)
    memory = random.uniform(1, 20, shape)
    seconds = 3 - memory / 10 + random.uniform(0, 0.02, shape)
    return quantised(seconds, memory, random.uniform(0, 0.01, (*shape, STRATEGIES)))


def sums(layers: int) -> Tables:
    """Seconds fall exactly in proportion, and transitions are free: a sum of subsets."""
    _, memory, moves = line(layers)
    return memory.max() - memory, memory, 0 * moves


TABLES: dict[str, Callable[[int], Tables]] = {f.__name__: f for f in (llama, equal, unlike, line, sums)}


def quantised(seconds: np.ndarray, memory: np.ndarray, moves: np.ndarray) -> Tables:
    """The same in units of which there are as many as lie between the least and 0.4 of the way to what the fastest
    strategies of all layers take."""
    least, most = memory.min(axis=1).sum(), memory[np.arange(len(memory)), seconds.argmin(axis=1)].sum()
    return seconds, np.ceil(memory * UNITS / (least + 0.4 * (most - least))), moves


def measured(name: str, layers: int, repeats: int) -> Row:
    """Both on the same tables, in turns."""
    tables = TABLES[name](layers)
    found, by_peer = solve(*tables, UNITS).time, peer()(tables)
    assert abs(found - by_peer) <= 1e-9 * by_peer, f"{name}: {found} is not {by_peer}"
    own_s, peer_s = [], []
    for _ in range(repeats):
        own_s.append(_cpu_s(lambda: solve(*tables, UNITS)))
        peer_s.append(_cpu_s(lambda: peer()(tables)))
    middle, middle_peer = statistics.median(own_s), statistics.median(peer_s)
    return Row(
        name, layers, tables[0].shape[1], UNITS, middle, _quartiles(own_s), middle_peer, _quartiles(peer_s),
        middle_peer / middle, found, by_peer,
    )  # fmt: skip


def _cpu_s(call: Callable[[], object]) -> float:
    began = time.process_time()
    call()
    return time.process_time() - began


def _quartiles(values: list[float]) -> tuple[float, float]:
    first, _, last = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    return first, last


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tables", default=",".join(TABLES))
    arguments = parser.parse_args()
    before = conditions("numpy")
    table = Table("tables", "layers", "solve (ms)", "peer (ms)", "ratio", title="CPU time of the best choice")
    for name in arguments.tables.split(","):
        for layers in LAYERS:
            row = measured(name, layers, arguments.repeats)
            save("solve", [entry(row, before, repeats=arguments.repeats)], key=("tables", "layers"))
            low, high = row.solve_quartiles_s
            table.add_row(
                name, str(layers), f"{1e3 * row.solve_s:.1f} ({1e3 * low:.1f} to {1e3 * high:.1f})",
                f"{1e3 * row.peer_s:.0f}", f"{row.ratio:.0f}",
            )  # fmt: skip
    Console(width=max(120, Console().width)).print(table)
    if warning := busy():
        print(warning, file=sys.stderr)


if __name__ == "__main__":
    main()
