"""How long a prediction takes: estimates of a 70B Llama on 8,192 devices, and prices of strategies, in seconds of one
core.

    python benchmarks/estimates.py [--rounds 5] [--strategies 48] [--against COMMIT]

The model is captured on `meta` with three layers, which then are repeated. In each round a process begins anew: its
first estimate of all finds out what depends on the classes alone, the next ones are the first of strategies that no
class was sharded under before, and each is then asked for again.

Strategies are priced for Llama-2-7B on 8 devices: so many, spread evenly over all axes, ZeRO levels and kinds of
recomputation at all pipeline degrees, each for one layer of each kind and every micro-batch. The peer is the same
script on another commit of this repository, in turns.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from accuracy.models import Shape
from accuracy.programs import program_of
from common.jobs import on_ranks
from common.results import busy, conditions, entry, save
from rich.console import Console
from rich.table import Table

import galvatron
from galvatron.costs.sharded import ShardedCostModel
from galvatron.ir.cluster import Cluster
from galvatron.passes.planning.enumerate_strategies import EnumerateStrategies
from galvatron.passes.planning.tree import divisors

LLAMA = Shape("llama", 80, 8192, 64, 4096, 128256, 28672, 8, flash=True, tied=False)
CLUSTER, BATCH = "h100-80g:1024x8", 65536
PLANS = (
    "pp16/m512/interleaved5/dp64-tp8+sp-zero1",
    "pp16/m512/interleaved5/dp128-tp4+sp-zero1",
    "pp16/m512/interleaved5/dp64-tp8-zero1-recompute=selective",
    "pp16/m512/1f1b/dp128-tp4-zero3-recompute",
    "pp16/m512/zbv/dp128-tp4-zero2",
)
"""No two of them have a strategy in common, but for what a stage is."""


SMALL, DEVICES, SAMPLES = Shape("llama", 32, 4096, 32, 4096, 32000, 11008, 32, flash=True, tied=False), 8, 8
SPACE = EnumerateStrategies(roles=("dp", "tp"), zero=(0,), recompute=("none",))


@dataclass(frozen=True)
class Row:
    """Seconds of one core for an estimate of a plan, median over rounds: the first one, and the same again."""

    plan: str
    first_s: float
    again_s: float
    step_time_s: float


def measure(_: int) -> list[tuple[float, float, float]]:
    """Of each plan, in a new process: seconds of the first estimate, of the second, and what it says."""
    program = program_of(LLAMA, "bf16")
    found = []
    for plan in PLANS:
        seconds: list[float] = []
        for _ in range(2):
            began = time.process_time()
            estimate = galvatron.estimate(program, plan, CLUSTER, global_batch_size=BATCH)
            seconds.append(time.process_time() - began)
        found.append((seconds[0], seconds[1], estimate.step_time_s))
    return found


@dataclass(frozen=True)
class Prices:
    """Milliseconds of one core for the price of a strategy, of so many: the first time, and the same again; median over
    rounds with the least and the most. `ratio` is that of the peer's median first time to ours."""

    commit: str
    strategies: int
    first_ms: float
    first_spread_ms: tuple[float, float]
    again_ms: float
    ratio: float


def price(count: int) -> tuple[float, float]:
    """Seconds of the first prices of so many strategies in this process, and of the same again."""
    cluster = Cluster.parse(f"a100-80g:1x{DEVICES}")
    program = replace(program_of(SMALL, "bf16"), cluster=cluster, batch_size=SAMPLES)
    model = ShardedCostModel(program, cluster)
    kinds = model.kinds()
    layers = [i for i, kind in enumerate(kinds) if kind not in kinds[:i]]
    space = [strategy for devices in divisors(DEVICES) for strategy in SPACE.leaves_of(devices)]
    chosen = [space[i * len(space) // count] for i in range(count)]
    seconds: list[float] = []
    for _ in range(2):
        began = time.process_time()
        for strategy in chosen:
            for micro_batch in divisors(SAMPLES):
                if micro_batch % strategy.degree("dp") == 0:
                    for layer in layers:
                        model.layer(layer, strategy, micro_batch, ())
        seconds.append(time.process_time() - began)
    return seconds[0], seconds[1]


def compared(rounds: int, count: int, peer: str) -> list[Prices]:
    """Prices of this tree and of another commit of it, in turns."""
    repository = Path(__file__).resolve().parents[1]
    with tempfile.TemporaryDirectory() as there:
        archive = subprocess.run(["git", "archive", peer, "galvatron"], cwd=repository, capture_output=True, check=True)
        subprocess.run(["tar", "-x", "-C", there], input=archive.stdout, check=True)
        roots = {"this": str(repository), peer: there}
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in roots}
        for _ in range(rounds):
            for name, root in roots.items():
                command = [sys.executable, __file__, "--price", str(count)]
                run = subprocess.run(
                    command, env={**os.environ, "PYTHONPATH": root}, capture_output=True, text=True, check=True
                )
                first_s, again_s = json.loads(run.stdout)
                found[name].append((first_s, again_s))
    first = {name: sorted(1e3 * seconds[0] / count for seconds in of) for name, of in found.items()}
    return [
        Prices(
            commit=name,
            strategies=count,
            first_ms=statistics.median(first[name]),
            first_spread_ms=(first[name][0], first[name][-1]),
            again_ms=statistics.median(1e3 * seconds[1] / count for seconds in found[name]),
            ratio=statistics.median(first[peer]) / statistics.median(first[name]),
        )
        for name in found
    ]


def compare(arguments: argparse.Namespace) -> None:
    """Shows and saves prices beside those of the peer."""
    before = conditions()
    rows = compared(arguments.rounds, arguments.strategies, arguments.against)
    facts = {"model": asdict(SMALL), "devices": DEVICES, "samples": SAMPLES, "rounds": arguments.rounds}
    save("prices", [entry(row, before, **facts) for row in rows], key=("commit",))
    table = Table("commit", "first (ms)", "least and most", "again (ms)", "peer / this", title="CPU time of a strategy")
    for row in rows:
        spread = f"{row.first_spread_ms[0]:.1f} to {row.first_spread_ms[1]:.1f}"
        table.add_row(row.commit, f"{row.first_ms:.1f}", spread, f"{row.again_ms:.3f}", f"{row.ratio:.1f}")
    Console(width=max(120, Console().width)).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--strategies", type=int, default=48)
    parser.add_argument("--against", help="a commit whose prices of strategies are the peer")
    parser.add_argument("--price", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.price is not None:
        print(json.dumps(price(arguments.price)))
        return
    if arguments.against is not None:
        compare(arguments)
        return
    program_of(LLAMA, "bf16")
    before = conditions()
    rounds = [on_ranks(measure, 1, 0) for _ in range(arguments.rounds)]
    columns = [
        [statistics.median(values) for values in zip(*of_plan, strict=True)] for of_plan in zip(*rounds, strict=True)
    ]
    rows = [Row(plan, *figures) for plan, figures in zip(PLANS, columns, strict=True)]
    facts = {"model": asdict(LLAMA), "cluster": CLUSTER, "batch": BATCH, "rounds": arguments.rounds}
    save("estimates", [entry(row, before, **facts) for row in rows], key=("plan",))
    table = Table(
        "plan", "first (ms)", "again (ms)", title="CPU time of an estimate; the first row also of the first of all"
    )
    for row in rows:
        table.add_row(row.plan, f"{1e3 * row.first_s:.0f}", f"{1e3 * row.again_s:.0f}")
    Console(width=max(120, Console().width)).print(table)
    if warning := busy():
        print(warning, file=sys.stderr)


if __name__ == "__main__":
    main()
