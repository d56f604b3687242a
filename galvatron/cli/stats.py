"""What passes did, what sharding left whole and what it sends, as tables and JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table

from galvatron.ir.ops.targets import parsed
from galvatron.printing import cell, wide_console
from galvatron.units import format_seconds

if TYPE_CHECKING:
    from galvatron.costs.fallbacks import ClassStatistics
    from galvatron.ir.layout import Axis
    from galvatron.passes.counting import Counted

Statistics = tuple["ClassStatistics", ...]

SMALL = "(small ops)"
"""The ops of which each would save less than a kernel launch."""


def print_statistics(statistics: Statistics, shared: str = "") -> None:
    """Prints the tables to stderr, under them what is `shared` if that is told."""
    console = wide_console(stderr=True)
    if not statistics:
        console.print("No layer runs on more than one device of its stage: there is nothing to shard.")
        return
    console.print(fallback_table(statistics))
    console.print(collective_table(statistics))
    if shared:
        console.print(cell(shared))


def fallback_table(statistics: Statistics) -> Table:
    """One row per class, axis, kind of op and reason; the share is that of the class's compute time."""
    table = Table(
        title="ops that run whole on an axis",
        caption="seconds of one layer and micro-batch, forward and backward",
    )
    table.add_column("class", overflow="fold")
    table.add_column("layers", justify="right")
    for name in ("axis", "op", "why"):
        table.add_column(name, overflow="fold")
    for name in ("ops", "time", "splitting saves", "share"):
        table.add_column(name, justify="right")
    for cls in statistics:
        head = (cls.name, str(cls.layers))
        if not cls.fallbacks:
            table.add_row(*map(cell, head), "", "none", "", "0", "", "", "")
        for row in cls.fallbacks:
            cells = (
                *head, str(row.axis), _op(row.target), str(row.reason or ""), str(row.count),
                format_seconds(row.seconds), format_seconds(row.saved_s), f"{_share(row.seconds, cls.compute_s):.1%}",
            )  # fmt: skip
            table.add_row(*map(cell, cells))
            head = ("", "")
        table.add_section()
    return table


def collective_table(statistics: Statistics) -> Table:
    """One row per class, axis and kind of collective."""
    table = Table(title="collectives", caption="of one layer and micro-batch")
    table.add_column("class", overflow="fold")
    for name in ("axis", "collective"):
        table.add_column(name)
    for name in ("forward", "backward", "time"):
        table.add_column(name, justify="right")
    for cls in statistics:
        head = cls.name
        if not cls.traffic:
            table.add_row(cell(head), "", "none", "0", "0", "")
        for row in cls.traffic:
            counts = (str(row.forward), str(row.backward))
            table.add_row(*map(cell, (head, str(row.axis), row.kind, *counts, format_seconds(row.seconds))))
            head = ""
        table.add_section()
    return table


def print_counts(found: Sequence[Counted]) -> None:
    """Prints the table of what every pass did to stderr."""
    table = Table(title="what passes did")
    table.add_column("pass", overflow="fold")
    table.add_column("what")
    for name in ("before", "after", "times"):
        table.add_column(name, justify="right")
    for counted in found:
        rows = [(name, str(before), str(after), "") for name, (before, after) in counted.changes.items()]
        rows += [(name, "", "", str(count)) for name, count in counted.counts.items()]
        for place, row in enumerate(rows or [("nothing", "", "", "")]):
            table.add_row(*map(cell, (counted.pass_ if place == 0 else "", *row)))
        table.add_section()
    wide_console(stderr=True).print(table)


def print_remarks(found: Sequence[Counted]) -> None:
    """Prints what passes say of single ops to stderr; equal remarks about one line once, with how many there are."""
    for counted in found:
        for text, count in Counter(map(str, counted.remarks)).items():
            times = f" (×{count})" if count > 1 else ""
            wide_console(stderr=True).print(cell(f"{counted.pass_}: {text}{times}"), soft_wrap=True, highlight=False)


def statistics_json(statistics: Statistics) -> list[dict[str, Any]]:
    """The same for programs: one object per class; seconds are floats, `op` and `why` of small ops null."""
    return [
        {
            "class": cls.name,
            "layers": cls.layers,
            "compute_s": cls.compute_s,
            "whole": [
                {
                    "axis": _axis(row.axis),
                    "op": row.target,
                    "why": str(row.reason) if row.reason else None,
                    "count": row.count,
                    "seconds": row.seconds,
                    "saved_s": row.saved_s,
                    "share": _share(row.seconds, cls.compute_s),
                }
                for row in cls.fallbacks
            ],
            "collectives": [
                {
                    "axis": _axis(row.axis),
                    "kind": row.kind,
                    "forward": row.forward,
                    "backward": row.backward,
                    "seconds": row.seconds,
                }
                for row in cls.traffic
            ],
        }
        for cls in statistics
    ]


def _op(target: str | None) -> str:
    return SMALL if target is None else parsed(target).brief


def _share(seconds: float, total: float) -> float:
    return seconds / total if total else 0.0


def _axis(axis: Axis) -> dict[str, object]:
    return {"name": axis.name, "size": axis.size, "stride": axis.stride}
