"""What our Python costs per step and per layer: a model so small that a step is nothing but bookkeeping.

    python benchmarks/overhead.py [--rounds 60] [--jobs 1,2]

The compiled program and its peer (eager PyTorch on one rank, DistributedDataParallel on two) run models of several
depths in turn. In each round the difference of their step times is fitted by a line over the number of layers: its
slope is what a layer costs more than the peer's, its value at no layers what a step does. Negative figures mean that
the compiled program is cheaper. The layers themselves are in the difference only as far as compiling changed their ops.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

import torch
from common import peers
from common.jobs import on_ranks
from common.llama import Llama, Size, batch_of
from common.measure import Spread, in_turn
from common.results import busy, conditions, entry, save
from rich.console import Console
from rich.table import Table

import galvatron

SIZE = Size(vocabulary=64, width=32, hidden=48, heads=2, layers=1, sequence=8)
DEPTHS = (2, 8, 16)
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Job:
    """So many ranks, and what a compiled program is compared with on them."""

    peer: str
    build: Callable[[Llama], peers.Step]


JOBS = {1: Job("eager", peers.eager), 2: Job("DistributedDataParallel", peers.data_parallel)}


@dataclass(frozen=True)
class Row:
    """Microseconds per layer and per step, of each contestant alone and of ours more than the peer's.

    `cpu` is of all threads of one rank, on average over ranks; `wall` of the slowest rank.
    """

    ranks: int
    plan: str
    peer: str
    clock: str
    own_per_layer_us: Spread
    peer_per_layer_us: Spread
    extra_per_layer_us: Spread
    own_per_step_us: Spread
    peer_per_step_us: Spread
    extra_per_step_us: Spread


def line(xs: Sequence[float], ys: Sequence[float]) -> tuple[float, float]:
    """Slope and value at zero of the least-squares line."""
    x_mean, y_mean = sum(xs) / len(xs), sum(ys) / len(ys)
    slope = sum((x - x_mean) * (y - y_mean) for x, y in zip(xs, ys, strict=True)) / sum((x - x_mean) ** 2 for x in xs)
    return slope, y_mean - slope * x_mean


def lines(seconds: Sequence[Sequence[float]]) -> tuple[list[float], list[float]]:
    """Slopes and values at zero in microseconds, round by round.

    Args:
        seconds: by depth, then by round.
    """
    fitted = [line(DEPTHS, [1e6 * s for s in round_]) for round_ in zip(*seconds, strict=True)]
    return [slope for slope, _ in fitted], [start for _, start in fitted]


def measure(ranks: int, rounds: int) -> list[Row]:
    """A row by CPU time and one by wall-clock, on every rank of a job."""
    batch = batch_of(SIZE, 2 * ranks, 0)
    plan = f"dp{ranks}"
    steps: dict[str, Callable[[], torch.Tensor]] = {}
    for depth in DEPTHS:
        torch.manual_seed(0)
        model = Llama(replace(SIZE, layers=depth))
        program = galvatron.compile(
            copy.deepcopy(model), batch, plan=plan, cluster=f"a100-80g:1x{ranks}", optimizer=peers.adamw
        )
        contestants = {"own": program.train_step, "peer": JOBS[ranks].build(model)}
        losses = [float(step(batch)) for step in contestants.values()]
        assert abs(losses[0] - losses[1]) < TOLERANCE * losses[1], f"{depth} layers: losses {losses}"
        steps |= {f"{name} {depth}": partial(step, batch) for name, step in contestants.items()}
    times = in_turn(steps, rounds, warm=5)
    rows = []
    for clock in ("cpu", "wall"):
        by_name = {
            name: [s / ranks for s in found.cpu_s] if clock == "cpu" else found.wall_s for name, found in times.items()
        }
        own, peer = ([by_name[f"{name} {depth}"] for depth in DEPTHS] for name in ("own", "peer"))
        extra = [[a - b for a, b in zip(o, p, strict=True)] for o, p in zip(own, peer, strict=True)]
        figures = [lines(of) for of in (own, peer, extra)]
        per_layer, per_step = ([Spread.of(figure[i]) for figure in figures] for i in (0, 1))
        rows.append(Row(ranks, plan, JOBS[ranks].peer, clock, *per_layer, *per_step))
    return rows


def print_rows(rows: list[Row]) -> None:
    table = Table(title="Microseconds of our program more than the peer's: median (quartiles)")
    for heading in ("plan", "peer", "clock", "per layer", "of peer's", "per step", "of peer's"):
        table.add_column(heading, no_wrap=True)
    for row in rows:
        layer, step = (
            f"{s.median:+.0f} ({s.lower:+.0f}..{s.upper:+.0f})" for s in (row.extra_per_layer_us, row.extra_per_step_us)
        )
        whole = (f"{s.median:.0f}" for s in (row.peer_per_layer_us, row.peer_per_step_us))
        table.add_row(row.plan, row.peer, row.clock, layer, next(whole), step, next(whole))
    Console(width=max(120, Console().width)).print(table)


def numbers(text: str) -> list[int]:
    found = [int(part) for part in text.split(",")]
    if unknown := set(found) - set(JOBS):
        raise argparse.ArgumentTypeError(f"no job of {unknown.pop()} ranks; there are {', '.join(map(str, JOBS))}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--jobs", type=numbers, default=list(JOBS), help="numbers of ranks: 1,2")
    arguments = parser.parse_args()
    rows: list[Row] = []
    for ranks in arguments.jobs:
        before = conditions()
        found = on_ranks(measure, ranks, ranks, arguments.rounds)
        facts = {"size": asdict(SIZE), "depths": DEPTHS, "rounds": arguments.rounds}
        save("overhead", [entry(row, before, **facts) for row in found], key=("ranks", "clock"))
        rows += found
    print_rows(rows)
    if warning := busy():
        print(warning, file=sys.stderr)


if __name__ == "__main__":
    main()
