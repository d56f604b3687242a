"""How large the report of a large plan is, and how soon a browser has drawn it.

    python benchmarks/report.py [--rounds 7]

The plan has 126 layers in 16 stages. The peer is an empty page in the same browser, opened in turn with the report:
what a ratio is more than 1 is the report's own. Needs Chromium.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from accuracy.models import LLAMA_3_405B
from accuracy.programs import program_of
from common.browser import CHROMIUM, Page, browser
from common.measure import Spread, ratios
from common.results import busy, conditions, entry, save
from rich.console import Console
from rich.table import Table

import galvatron
from galvatron.forms import with_costs
from galvatron.ir.planned import read_plan, with_plan

CLUSTER, BATCH, PLANS = "h100-80g:128x8", 2048, ("pp16/m32/1f1b/dp8-tp8+sp-zero1", "pp16/m32/interleaved2/dp8-tp8+sp")
EMPTY = '<!doctype html><html data-ready="yes"><title>empty</title></html>'


@dataclass(frozen=True)
class Row:
    """The report of one plan: its bytes, seconds to make it, and seconds until it is drawn.

    Attributes:
        complaints: errors and warnings of the browser's console.
    """

    plan: str
    peer: str
    page_bytes: int
    made_s: float
    drawn_s: Spread
    peer_s: Spread
    ratio: Spread
    complaints: int


def opened_s(page: Page, path: Path) -> float:
    begin = time.perf_counter()
    page.open(path)
    return time.perf_counter() - begin


def measure(plans: tuple[str, ...], rounds: int) -> list[Row]:
    """The report of the first plan alone, and of the first beside the second."""
    cluster = galvatron.Cluster.parse(CLUSTER)
    program = program_of(LLAMA_3_405B, "bf16")
    priced = with_costs(program, cluster, BATCH)
    first, second = (with_plan(priced, read_plan(plan)).required_plan for plan in plans)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder, browser() as page:
        empty = Path(folder) / "empty.html"
        empty.write_text(EMPTY, encoding="utf-8")
        for name, against in ((plans[0], None), (" beside ".join(plans), second)):
            begin = time.perf_counter()
            text = galvatron.report(program, first, cluster, against=against)
            made_s = time.perf_counter() - begin
            path = Path(folder) / "report.html"
            path.write_text(text, encoding="utf-8")
            for warm in (path, empty):
                opened_s(page, warm)
            times = [(opened_s(page, path), opened_s(page, empty)) for _ in range(rounds)]
            own, peer = zip(*times, strict=True)
            drawn, size = (Spread.of(own), Spread.of(peer), ratios(own, peer)), len(text.encode())
            rows.append(Row(name, "an empty page", size, made_s, *drawn, len(page.complaints)))
    return rows


def print_rows(rows: list[Row]) -> None:
    table = Table(title="Reports of 126 layers in 16 stages: median (quartiles)")
    for heading in ("plan", "MB", "made, s", "drawn, s", "over an empty page", "complaints"):
        table.add_column(heading, no_wrap=heading != "plan")
    for row in rows:
        size = f"{row.page_bytes / 1e6:.2f}"
        table.add_row(row.plan, size, f"{row.made_s:.1f}", str(row.drawn_s), str(row.ratio), str(row.complaints))
    Console(width=max(120, Console().width)).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    if CHROMIUM is None:
        parser.error("no Chromium is installed")
    before = conditions()
    rows = measure(PLANS, arguments.rounds)
    save("report", [entry(row, before, rounds=arguments.rounds) for row in rows], key=("plan",))
    print_rows(rows)
    if warning := busy():
        print(warning, file=sys.stderr)


if __name__ == "__main__":
    main()
