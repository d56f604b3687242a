"""How long a prediction takes: estimates of a 70B Llama on 8,192 devices, in seconds of one core.

    python benchmarks/estimates.py [--rounds 5]

The model is captured on `meta` with three layers, which then are repeated. In each round a process begins anew: its
first estimate of all finds out what depends on the classes alone, the next ones are the first of strategies that no
class was sharded under before, and each is then asked for again.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from dataclasses import asdict, dataclass

from accuracy.models import Shape
from accuracy.programs import program_of
from common.jobs import on_ranks
from common.results import busy, conditions, entry, save
from rich.console import Console
from rich.table import Table

import galvatron

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


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
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
