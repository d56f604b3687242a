"""How long a prediction takes: estimates of a 70B Llama on 8,192 devices, and prices of strategies, in seconds of one
core.

    python benchmarks/estimates.py [--rounds 5] [--strategies 48] [--against COMMIT]

The model is captured on `meta` with three layers, which then are repeated. In each round a process begins anew: its
first estimate of all finds out what depends on the classes alone, the next ones are the first of strategies that no
class was sharded under before, and each is then asked for again.

Strategies are priced for Llama-2-7B on 8 devices: so many, spread evenly over all roles, axes, ZeRO levels and kinds of
recomputation at all pipeline degrees, each for one layer of each kind and every micro-batch; and with `--strategies 0`
all of them. Between those of equally many devices conversions are priced, from one layer to the next. The peer is the
same script on another commit of this repository, in turns.
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
SPACE = EnumerateStrategies(heuristics=False)


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
    """Seconds of one core for prices of so many strategies: of layers, the first time and again, and of conversions;
    median over rounds with the least and the most. `ratio` is that of the peer's median of all first times to ours."""

    commit: str
    strategies: int
    layers_s: float
    layers_spread_s: tuple[float, float]
    again_s: float
    conversions_s: float
    conversions_spread_s: tuple[float, float]
    ratio: float


def price(count: int) -> tuple[float, float, float]:
    """Seconds of the first prices of so many strategies in this process, of the same again, and of conversions."""
    cluster = Cluster.parse(f"a100-80g:1x{DEVICES}")
    program = replace(program_of(SMALL, "bf16"), cluster=cluster, batch_size=SAMPLES)
    model = ShardedCostModel(program, cluster)
    kinds = model.kinds()
    layers = [i for i, kind in enumerate(kinds) if kind not in kinds[:i]]
    space = [strategy for devices in divisors(DEVICES) for strategy in SPACE.leaves_of(devices)]
    chosen = [space[i * len(space) // count] for i in range(count)] if count else space
    seconds: list[float] = []
    for _ in range(2):
        began = time.process_time()
        for strategy in chosen:
            for micro_batch in divisors(SAMPLES):
                if micro_batch % strategy.degree("dp") == 0:
                    for layer in layers:
                        model.layer(layer, strategy, micro_batch, ())
        seconds.append(time.process_time() - began)
    began = time.process_time()
    for micro_batch in divisors(SAMPLES):
        meshes = {one.axes: one for one in chosen if micro_batch % one.degree("dp") == 0}.values()
        for layer in layers:
            for before in meshes:
                for after in meshes:
                    if layer and before.devices == after.devices:
                        model.conversion_s(layer, before, after, micro_batch)
    return seconds[0], seconds[1], time.process_time() - began


def compared(rounds: int, count: int, peer: str) -> list[Prices]:
    """Prices of this tree and of another commit of it, in turns."""
    repository = Path(__file__).resolve().parents[1]
    with tempfile.TemporaryDirectory() as there:
        archive = subprocess.run(["git", "archive", peer, "galvatron"], cwd=repository, capture_output=True, check=True)
        subprocess.run(["tar", "-x", "-C", there], input=archive.stdout, check=True)
        roots = {"this": str(repository), peer: there}
        found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in roots}
        for _ in range(rounds):
            for name, root in roots.items():
                command = [sys.executable, __file__, "--price", str(count)]
                run = subprocess.run(
                    command, env={**os.environ, "PYTHONPATH": root}, capture_output=True, text=True, check=True
                )
                found[name].append(json.loads(run.stdout))
    medians = {name: [statistics.median(column) for column in zip(*of, strict=True)] for name, of in found.items()}
    both = {name: layers_s + conversions_s for name, (layers_s, _, conversions_s) in medians.items()}
    rows: list[Prices] = []
    for name, of in found.items():
        layers, _, conversions = ((min(column), max(column)) for column in zip(*of, strict=True))
        layers_s, again_s, conversions_s = medians[name]
        rows.append(Prices(name, count, layers_s, layers, again_s, conversions_s, conversions, both[peer] / both[name]))
    return rows


def compare(arguments: argparse.Namespace) -> None:
    """Shows and saves prices beside those of the peer."""
    before = conditions()
    rows = compared(arguments.rounds, arguments.strategies, arguments.against)
    facts = {"model": asdict(SMALL), "devices": DEVICES, "samples": SAMPLES, "rounds": arguments.rounds}
    save("prices", [entry(row, before, **facts) for row in rows], key=("commit",))
    heads = ("commit", "layers (s)", "least and most", "again (s)", "conversions (s)", "least and most", "peer / this")
    table = Table(*heads, title="CPU time of the prices of strategies")
    for row in rows:
        layers, conversions = (f"{a:.2f} to {b:.2f}" for a, b in (row.layers_spread_s, row.conversions_spread_s))
        seconds = f"{row.layers_s:.2f}", layers, f"{row.again_s:.3f}", f"{row.conversions_s:.2f}", conversions
        table.add_row(row.commit, *seconds, f"{row.ratio:.1f}")
    Console(width=max(120, Console().width)).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--strategies", type=int, default=0, help="as many, or 0 for all")
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
