"""Steps on what a loader gives against steps on batches that are in memory already: the same compiled program.

    python benchmarks/loader.py [--quick] [--ranks 1,2] [--workers 0,1] [--rounds 15]

Every rank has one thread. With batches in memory each rank has the whole of them, as `train_step` takes them without a
loader. A loader cuts windows out of a long row of tokens, in an order of its own for each epoch, in the process that
trains or in workers. All take turns in one job; a turn is a second of steps. A ratio above 1 means more tokens per
second with the loader. CPU time is that of the training processes, without workers: it says what a loader costs where
other programs have the machine too.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import torch
from common import peers
from common.jobs import device, on_ranks
from common.llama import Batch, Llama, Size, batch_of
from common.measure import Spread, Times, in_turn, ratios
from common.results import busy, conditions, entry, save
from rich.console import Console
from rich.table import Table

import galvatron
from galvatron.data import Loader

SAMPLES, KEPT = 8, 8
"""Samples of a batch, and batches in memory."""


class Windows:
    """Samples of a long row of tokens; each has the next tokens as labels."""

    def __init__(self, size: Size, count: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self._tokens = torch.randint(0, size.vocabulary, (count * size.sequence + 1,), generator=generator)
        self._sequence, self._count = size.sequence, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> Batch:
        window = self._tokens[number * self._sequence : (number + 1) * self._sequence + 1]
        return {"tokens": window[:-1], "labels": window[1:]}


def _forever(loader: Loader) -> Iterator[Any]:
    while True:
        yield from loader


def compare(size: Size, plan: str, workers: list[int], rounds: int, span_s: float) -> dict[str, Times]:
    """One job, on every rank of it."""
    torch.manual_seed(0)
    batches = [batch_of(size, SAMPLES, seed) for seed in range(KEPT)]
    program = galvatron.compile(Llama(size).to(device()), batches[0], plan=plan, optimizer=peers.adamw)
    sources: dict[str, Iterator[Any]] = {"memory": cycle(batches)}
    for count in workers:
        loader = program.dataloader(Windows(size, 4096), shuffle=True, workers=count, name=str(count))
        sources[f"{count} workers"] = _forever(loader)
    steps = {
        name: lambda batches=batches: program.train_step(next(batches))  # type: ignore[misc]  # one per source
        for name, batches in sources.items()
    }
    return in_turn(steps, rounds, before=1, span_s=span_s)


@dataclass(frozen=True)
class Row:
    """Tokens per second of a loader over those of batches in memory, both, and the ratio of CPU times of a step."""

    ranks: int
    plan: str
    workers: str
    ratio: Spread
    loader_tokens_per_s: Spread
    memory_tokens_per_s: Spread
    cpu_ratio: Spread


def rows_of(ranks: int, plan: str, size: Size, times: dict[str, Times]) -> list[Row]:
    rates = {name: [SAMPLES * size.sequence / s for s in found.wall_s] for name, found in times.items()}
    memory = rates.pop("memory")
    return [
        Row(
            ranks,
            plan,
            name,
            ratios(own, memory),
            Spread.of(own),
            Spread.of(memory),
            ratios(times[name].cpu_s, times["memory"].cpu_s),
        )
        for name, own in rates.items()
    ]


def print_rows(rows: list[Row]) -> None:
    table = Table(title="Tokens per second, loader / batches in memory: median (quartiles)")
    for heading in ("ranks", "plan", "loader", "ratio", "loader", "memory", "CPU time"):
        table.add_column(heading, no_wrap=True)
    for row in rows:
        rates = (f"{rate.median:.0f}/s" for rate in (row.loader_tokens_per_s, row.memory_tokens_per_s))
        table.add_row(str(row.ranks), row.plan, row.workers, str(row.ratio), *rates, str(row.cpu_ratio))
    Console(width=max(100, Console().width)).print(table)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a tiny model and few rounds: does it run at all")
    parser.add_argument("--ranks", type=lambda text: [int(n) for n in text.split(",")], default=[1, 2])
    parser.add_argument("--workers", type=lambda text: [int(n) for n in text.split(",")], default=[0, 1])
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    size = Size(512, 64, 128, 4, 2, 32) if arguments.quick else Size(4096, 256, 704, 8, 4, 128)
    rounds, span_s = (2, 0.05) if arguments.quick else (arguments.rounds, 1.0)
    rows: list[Row] = []
    for ranks in arguments.ranks:
        before, plan = conditions(), f"dp{ranks}"
        found = rows_of(ranks, plan, size, on_ranks(compare, ranks, size, plan, arguments.workers, rounds, span_s))
        rows += found
        if not arguments.quick:
            entries = [entry(row, before, size=vars(size)) for row in found]
            save("loader", entries, ("ranks", "plan", "workers"))
    print_rows(rows)
    if warning := busy():
        print(warning, file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
