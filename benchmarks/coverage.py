"""Whether real architectures train as in eager PyTorch: four plans each, on two ranks, in float64.

    python benchmarks/coverage.py [--only NAME ...] [--family NAME ...] [--jobs 1] [--missing] [--out FILE] [--json]

Each row is captured once and trained for a step under each plan; loss, gradients and buffers are compared with the
unmodified model on one device. Rows go to `results/coverage.json` as they end, and the document `docs/coverage.md` is
written from all that are there. Without options everything is run.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from common.architectures import FAMILIES, architectures
from common.architectures.base import Architecture
from common.coverage.document import DOCUMENT, document, rows_in, summary
from common.coverage.jobs import run_rows
from common.coverage.outcomes import RowOutcome
from common.results import RESULTS, conditions, entry, save
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

LIMIT_S = 240.0
"""What a row may take."""


def main() -> None:
    arguments = _arguments()
    path = Path(arguments.out)
    rows = _chosen(arguments, path)
    if not arguments.document:
        run(rows, path, arguments.jobs, arguments.limit)
    found = rows_in(path)
    if path == RESULTS / "coverage.json":
        DOCUMENT.write_text(document(found), encoding="utf-8")
    if arguments.json:
        print(json.dumps([asdict(row) for row in found], indent=2))
    else:
        Console(width=max(120, Console().width)).print(summary(found))


def run(rows: Sequence[Architecture], path: Path, jobs: int, limit_s: float) -> None:
    """Runs rows, and writes each to a results file when it ends."""
    before = conditions()
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=len(rows))

        def ends(row: RowOutcome) -> None:
            save("coverage", [entry(row, before)], key=("name",), path=path)
            progress.advance(task)
            progress.console.print(f"{row.outcome:8} {row.name}: {_short(row)}", markup=False, highlight=False)

        run_rows(rows, jobs, limit_s, lambda name: progress.update(task, description=name), ends)


def _short(row: RowOutcome) -> str:
    captured = f"{row.capture_s} s, {row.layers} layers" if row.capture_s is not None else ""
    plans = " ".join(f"{plan.plan}={plan.outcome}" for plan in row.plans)
    return " | ".join(
        part for part in (captured, plans, row.cause.strip().splitlines()[-1] if row.cause else "") if part
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="these rows")
    parser.add_argument("--family", nargs="+", default=[], choices=FAMILIES, help="the rows of these families")
    parser.add_argument("--missing", action="store_true", help="of the chosen rows, those that the results lack")
    parser.add_argument("--document", action="store_true", help="run nothing: write the document again")
    parser.add_argument("--jobs", type=int, default=1, help="rows at a time, each on two ranks")
    parser.add_argument("--limit", type=float, default=LIMIT_S, help="seconds that a row may take")
    parser.add_argument("--out", default=RESULTS / "coverage.json", metavar="FILE", help="where results go")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    return parser.parse_args()


def _chosen(arguments: argparse.Namespace, path: Path) -> list[Architecture]:
    rows = list(architectures())
    if unknown := set(arguments.only) - {row.name for row in rows}:
        sys.exit(f"no such rows: {', '.join(sorted(unknown))}")
    if arguments.only or arguments.family:
        rows = [row for row in rows if row.name in arguments.only or row.family in arguments.family]
    if arguments.missing and path.exists():
        known = {row.name for row in rows_in(path)}
        rows = [row for row in rows if row.name not in known]
    return rows


if __name__ == "__main__":
    main()
