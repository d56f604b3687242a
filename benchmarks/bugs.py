"""How long it takes to find a bug in a pass: planted ones, each in a process of its own.

    python benchmarks/bugs.py [--bugs NAME ...] [--rounds 3]

Of each bug the passes are compared (`galvatron run --compare`), the pass and the rewrite are named (`galvatron bisect`)
and the program is made as small as it goes on failing (`galvatron reduce`). The peer is a minute: a ratio of less than
one is a bug that is found and reduced sooner. Loading torch and capturing the model come before and are not counted.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from common.jobs import on_ranks
from common.measure import Spread
from common.results import busy, conditions, entry, save
from rich.console import Console
from rich.table import Table

import galvatron
from galvatron.debugging.passes import failure, outcomes, pass_departure
from galvatron.debugging.reducing import reduced
from galvatron.passes.bisecting import Culprit, first_rewrite

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests.debugging.planted import BUGS, net

Result = TypeVar("Result")

MINUTE_S = 60.0
SMALL = 10
"""Ops that a program is left with are fewer."""


@dataclass(frozen=True)
class Found:
    """What was found of a bug, and how long each step of it took.

    Attributes:
        pass_, rule: the pass that was named, and the rule of it; the rule is empty where a pass does not rewrite.
        ops: that the program is left with, and had before.
        wall_s, cpu_s: of `compare`, `bisect` and `reduce`.
    """

    pass_: str
    rule: str
    ops: tuple[int, int]
    wall_s: dict[str, float]
    cpu_s: dict[str, float]


@dataclass(frozen=True)
class Row:
    """One bug: what was found, seconds of each step and of all together, and these as a share of the peer's."""

    bug: str
    peer: str
    pass_: str
    rule: str
    ops_left: int
    ops_before: int
    wall_s: dict[str, Spread]
    cpu_s: dict[str, Spread]
    wall_ratio: Spread
    cpu_ratio: Spread


@dataclass
class _Clock:
    wall_s: dict[str, float] = field(default_factory=dict)
    cpu_s: dict[str, float] = field(default_factory=dict)

    def timed(self, step: str, run: Callable[[], Result]) -> Result:
        wall, cpu = time.perf_counter(), time.process_time()
        result = run()
        self.wall_s[step], self.cpu_s[step] = time.perf_counter() - wall, time.process_time() - cpu
        return result


def found(name: str) -> Found:
    """Looks for a bug.

    Raises:
        RuntimeError: another pass was named, or the program is left with too many ops.
    """
    bug = BUGS[name]
    program = galvatron.capture(*net(), form="captured")
    clock = _Clock()
    with bug.planted():
        pipeline = bug.pipeline.parse(str(bug.pipeline))
        compared = clock.timed("compare", lambda: list(outcomes(program, pipeline)))
        failed = next((one for one in compared if one.failed), None)
        if failed is None or failed.pass_ != bug.pass_:
            raise RuntimeError(f"{name}: not {bug.pass_} is to blame, but {failed and failed.pass_}")

        def bisected() -> str:
            blamed = failure(program, pipeline)
            assert blamed is not None
            culprit = Culprit(blamed.index, pipeline.passes[blamed.index], blamed.before, blamed.after)
            first = first_rewrite(culprit, lambda one: pass_departure(culprit.before, one) is None)
            return "" if first is None else first.remark.rule

        rule = clock.timed("bisect", bisected)
        smaller = clock.timed("reduce", lambda: reduced(program, lambda one: failed.is_like(failure(one, pipeline))))
    ops = len(smaller.required_graph.ops), len(program.required_graph.ops)
    if ops[0] >= SMALL:
        raise RuntimeError(f"{name}: {ops[0]} of {ops[1]} ops are left")
    return Found(failed.pass_, rule, ops, clock.wall_s, clock.cpu_s)


def measure(name: str, rounds: int) -> Row:
    """One bug, found once in each round, each time in a new process."""
    several = [on_ranks(found, 1, name) for _ in range(rounds)]
    first = several[0]
    wall, cpu = ([getattr(one, clock) for one in several] for clock in ("wall_s", "cpu_s"))
    return Row(
        name,
        "a minute",
        first.pass_,
        first.rule,
        *first.ops,
        *({step: Spread.of([one[step] for one in times]) for step in first.wall_s} for times in (wall, cpu)),
        *(Spread.of([sum(one.values()) / MINUTE_S for one in times]) for times in (wall, cpu)),
    )


def print_rows(rows: list[Row]) -> None:
    table = Table(title="Planted bugs: median seconds, and all of them over a minute (quartiles)")
    steps = tuple(rows[0].wall_s)
    for heading in ("bug", "pass", "rule", "ops", *steps, "over a minute", "of CPU"):
        table.add_column(heading)
    for row in rows:
        seconds = (f"{row.wall_s[step].median:.2f}" for step in steps)
        ops = f"{row.ops_left} of {row.ops_before}"
        table.add_row(row.bug, row.pass_, row.rule, ops, *seconds, str(row.wall_ratio), str(row.cpu_ratio))
    Console(width=max(120, Console().width)).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--bugs", nargs="+", default=list(BUGS), choices=BUGS, metavar="NAME")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    before = conditions()
    rows = [measure(name, arguments.rounds) for name in arguments.bugs]
    save("bugs", [entry(row, before, rounds=arguments.rounds) for row in rows], key=("bug",))
    print_rows(rows)
    if warning := busy():
        print(warning, file=sys.stderr)


if __name__ == "__main__":
    main()
