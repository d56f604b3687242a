"""The cost model against training steps that others measured, from device presets alone.

    python benchmarks/published.py [--data DIR] [--table NAME ...] [--sample N] [--jobs 2] [--rows]

Reads the tables of measurements in a directory, predicts each row, prints how far off the predictions are, and writes
`results/published.json` and a scatter plot per table.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

from accuracy.predict import predict
from accuracy.rows import Row
from accuracy.scatter import scatter
from accuracy.statistics import Accuracy, Outcome, accuracy
from accuracy.tables import TABLES, rows_of
from common.results import RESULTS, conditions
from rich.console import Console
from rich.table import Table

from galvatron.errors import GalvatronError

DATA = Path(__file__).resolve().parent.parent / "shared" / "data" / "published"


def outcome(row: Row) -> Outcome:
    """What is predicted for a row; a plan that is refused is an outcome too."""
    if row.refused:
        return Outcome(row, None, row.refused)
    try:
        return Outcome(row, predict(row))
    except GalvatronError as error:
        return Outcome(row, None, str(error))


def outcomes_of(rows: Sequence[Row]) -> list[Outcome]:
    return [outcome(row) for row in rows]


def all_outcomes(rows: Sequence[Row], jobs: int) -> list[Outcome]:
    """The outcomes of rows, in their order; rows with one model and cluster go to one process, which shards once."""

    def key(index: int) -> tuple[str, ...]:
        return repr(rows[index].shape), str(rows[index].cluster), str(rows[index].batch)

    order = sorted(range(len(rows)), key=key)
    parts = [list(part) for _, part in groupby(order, lambda index: key(index)[:2])]
    found: dict[int, Outcome] = {}
    if jobs == 1:
        for part in parts:
            found.update(zip(part, outcomes_of([rows[i] for i in part]), strict=True))
    else:
        with ProcessPoolExecutor(jobs) as pool:
            for part, made in zip(parts, pool.map(outcomes_of, [[rows[i] for i in p] for p in parts]), strict=True):
                found.update(zip(part, made, strict=True))
    return [found[index] for index in range(len(rows))]


def print_accuracy(figures: Sequence[Accuracy]) -> None:
    table = Table(title="Predicted against measured steps of others, from presets alone")
    for heading in (
        "table", "rows", "not predicted", "median", "90 %", "worst", "bias", "order (groups)", "best picked",
        "called too large", "memory median", "memory low",
    ):  # fmt: skip
        table.add_column(heading)
    for one in figures:
        table.add_row(
            one.table, str(one.rows), str(one.refused), _share(one.median), _share(one.p90), _share(one.worst),
            _signed(one.bias), "-" if one.order is None else f"{one.order:.2f} ({one.groups})", _share(one.picked),
            _share(one.refused_memory), _share(one.memory_median), _signed(one.memory_low),
        )  # fmt: skip
    Console(width=max(160, Console().width)).print(table)


def print_rows(outcomes: Sequence[Outcome]) -> None:
    table = Table(title=outcomes[0].row.table)
    for heading in (
        "row", "plan", "predicted", "measured", "error", "memory", "measured", "compute", "host", "layers'", "p2p",
        "sync", "hidden", "update", "bubble",
    ):  # fmt: skip
        table.add_column(heading, no_wrap=heading not in ("row", "plan"))
    for one in outcomes:
        if one.prediction is None:
            table.add_row(one.row.name, one.problem)
            continue
        parts = (f"{seconds / one.prediction.step_s:.0%}" for seconds in asdict(one.prediction.breakdown).values())
        table.add_row(
            one.row.name, one.row.plan_text, f"{one.prediction.step_s:.3f} s", f"{one.row.step_s:.3f} s",
            _signed(one.error), _gib(one.prediction.peak_bytes), _gib(one.row.peak_bytes), *parts,
        )  # fmt: skip
    Console(width=max(180, Console().width)).print(table)


def document(figures: Sequence[Accuracy], outcomes: Sequence[Outcome], facts: dict[str, Any]) -> str:
    """The results as JSON: the accuracy of each table, and one line per row."""
    lines = ",\n".join("    " + json.dumps(_entry(one)) for one in outcomes)
    head = json.dumps({"benchmark": "published", "conditions": facts, "tables": [*map(asdict, figures)]}, indent=2)
    return f'{head[:-2]},\n  "rows": [\n{lines}\n  ]\n}}\n'


def _entry(one: Outcome) -> dict[str, Any]:
    entry: dict[str, Any] = {"table": one.row.table, "row": one.row.name, "plan": one.row.plan_text}
    entry["measured_s"] = _rounded(one.row.step_s)
    if one.row.peak_bytes:
        entry["measured_bytes"] = [*map(round, one.row.peak_bytes)]
    if one.prediction is None:
        return {**entry, "problem": one.problem}
    breakdown = {name: _rounded(seconds) for name, seconds in asdict(one.prediction.breakdown).items()}
    return {
        **entry,
        "predicted_s": _rounded(one.prediction.step_s),
        "predicted_bytes": [*one.prediction.peak_bytes],
        **breakdown,
    }


def _rounded(seconds: float) -> float:
    return float(f"{seconds:.4g}")


def _share(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _signed(share: float | None) -> str:
    return "-" if share is None else f"{share:+.1%}"


def _gib(sizes: Sequence[float]) -> str:
    return f"{max(sizes) / 2**30:.1f} GiB" if sizes else "-"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, default=DATA, help="where the tables are")
    parser.add_argument("--table", action="append", choices=list(TABLES), help="only this one; may be repeated")
    parser.add_argument("--sample", type=int, help="so many rows of each table, the same ones every time")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--rows", action="store_true", help="print every row")
    parser.add_argument("--out", type=Path, help="directory for results; default: benchmarks/results, if all is run")
    arguments = parser.parse_args()
    if not arguments.data.is_dir():
        print(f"no tables in {arguments.data}", file=sys.stderr)
        return
    facts, start = conditions("galvatron"), time.perf_counter()
    figures: list[Accuracy] = []
    everything: list[Outcome] = []
    plots: dict[str, str] = {}
    for name in arguments.table or TABLES:
        rows = rows_of(name, arguments.data)
        if arguments.sample is not None and arguments.sample < len(rows):
            rows = random.Random(0).sample(rows, arguments.sample)
        print(f"{name}: {len(rows)} rows ...", file=sys.stderr, flush=True)
        outcomes = all_outcomes(rows, arguments.jobs)
        if arguments.rows:
            print_rows(outcomes)
        figures.append(accuracy(name, outcomes))
        points = [(one.row.step_s, one.prediction.step_s) for one in outcomes if one.prediction is not None]
        plots[name] = scatter(name, points) if points else ""
        everything += outcomes
    print_accuracy(figures)
    print(f"{time.perf_counter() - start:.0f} s", file=sys.stderr)
    whole = arguments.table is None and arguments.sample is None
    out = arguments.out or (RESULTS if whole else None)
    if out is not None:
        (out / "published").mkdir(parents=True, exist_ok=True)
        (out / "published.json").write_text(document(figures, everything, facts), encoding="utf-8")
        for name, plot in plots.items():
            (out / "published" / f"{name}.svg").write_text(plot, encoding="utf-8")


if __name__ == "__main__":
    main()
