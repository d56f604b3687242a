"""What the check found, for readers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

Document = dict[str, Any]


def print_tables(documents: dict[str, Document]) -> None:
    """One table per part that found something."""
    console = Console(width=max(140, Console().width))
    makers = {
        "parity": _checked,
        "communication": _counted,
        "speed": _speed,
        "hardware": _hardware,
        "steps": _steps,
        "prediction": _prediction,
        "kernels": _kernels,
    }
    for part, document in documents.items():
        if document.get("rows"):
            console.print(makers[part](document["rows"]))


def _table(title: str, headings: Sequence[str]) -> Table:
    table = Table(title=title)
    for heading in headings:
        table.add_column(heading, no_wrap=heading not in ("found",))
    return table


def _checked(rows: list[Document]) -> Table:
    table = _table("Parity with eager PyTorch", ("case", "loss", "worst gradient", "allowed", "found"))
    for row in rows:
        if "found" in row:
            table.add_row(row["case"], "", "", "", row["found"])
        else:
            errors = (f"{row[name]:.1e}" for name in ("loss_error", "gradient_error", "allowed"))
            table.add_row(row["case"], *errors, row["worst"])
    return table


def _counted(rows: list[Document]) -> Table:
    table = _table("Communication on one rank", ("case", "found"))
    moves = [row for row in rows if row["found"] == "as it should be"]
    table.add_row("moves between placements", f"{len(moves)} as they should be")
    for row in rows:
        if row not in moves:
            table.add_row(row["case"], row["found"])
    return table


def _speed(rows: list[Document]) -> Table:
    headings = ("samples", "contestant", "step, ms", "host, ms", "TFLOP/s", "peak, GiB", "ours / it", "peak, ours / it")
    table = _table("Steps of a Llama: median (quartiles)", headings)
    for row in rows:
        if "step_s" in row:
            step, host, ratio = row["step_s"], row["host_s"], row["ratio"]
            table.add_row(
                str(row["samples"]),
                row["contestant"],
                f"{1e3 * step['median']:.2f} ({1e3 * step['lower']:.2f}..{1e3 * step['upper']:.2f})",
                f"{1e3 * host['median']:.2f}",
                f"{row['flop_per_s'] / 1e12:.1f}",
                f"{row['peak_bytes'] / 2**30:.2f}" if row["peak_bytes"] else "",
                f"{ratio['median']:.3f} ({ratio['lower']:.3f}..{ratio['upper']:.3f})" if ratio else "",
                f"{row['peak_ratio']:.3f}" if row["peak_ratio"] else "",
            )
    return table


def _hardware(rows: list[Document]) -> Table:
    table = _table("The device", ("call", "type", "sizes", "shortest, us", "longest, us", "largest spread"))
    for row in rows:
        times = (f"{1e6 * row[name]:.1f}" for name in ("shortest_s", "longest_s"))
        table.add_row(row["name"], row["dtype"], str(row["sizes"]), *times, f"{row['spread']:.1%}")
    return table


def _steps(rows: list[Document]) -> Table:
    headings = (
        "model",
        "variant",
        "samples",
        "step, ms",
        "host, ms",
        "kernels",
        "busy, ms",
        "MHz",
        "peak, GiB",
        "reserved, GiB",
    )
    table = _table("Steps: median (quartiles)", headings)
    for row in rows:
        step, warm = row["step_s"], row["warm"]
        table.add_row(
            row["subject"],
            row["variant"],
            str(row["samples"]),
            f"{1e3 * step['median']:.2f} ({1e3 * step['lower']:.2f}..{1e3 * step['upper']:.2f})",
            f"{1e3 * row['host_s']['median']:.2f}",
            f"{sum(count for count, _ in warm['kernels'].values()):.0f}" if warm else "",
            f"{1e3 * warm['busy_s']:.2f}" if warm else "",
            f"{warm['clock_mhz']:.0f}" if warm and warm["clock_mhz"] else "",
            *(f"{row[name] / 2**30:.2f}" if row[name] else "" for name in ("peak_bytes", "reserved_bytes")),
        )
    return table


def _prediction(rows: list[Document]) -> Table:
    headings = (
        "model",
        "variant",
        "samples",
        "device",
        "step, ms",
        "measured",
        "ratio",
        "to busy",
        "peak, GiB",
        "measured",
        "ratio",
    )
    table = _table("Predicted and measured", headings)
    for row in rows:
        measured = row["measured_peak_bytes"]
        table.add_row(
            row["subject"],
            row["variant"],
            str(row["samples"]),
            row["cluster"],
            f"{1e3 * row['predicted_step_s']:.2f}",
            f"{1e3 * row['measured_step_s']:.2f}",
            f"{row['step_ratio']:.3f}",
            f"{row['busy_ratio']:.3f}" if row["busy_ratio"] else "",
            f"{row['predicted_peak_bytes'] / 2**30:.2f}",
            f"{measured / 2**30:.2f}" if measured else "",
            f"{row['peak_ratio']:.3f}" if row["peak_ratio"] else "",
        )
    return table


def _kernels(rows: list[Document]) -> Table:
    headings = ("class", "pass", "launches said", "counted", "kept, KiB said", "found", "only said", "only run")
    table = _table("Kernels by the cost model and by the device", headings)
    for row in rows:
        kept = (row["predicted_kept_bytes"], row["measured_kept_bytes"])
        table.add_row(
            row["case"],
            row["way"],
            str(row["predicted_launches"]),
            str(row["measured_launches"] or ""),
            *("" if size is None else f"{size / 1024:.1f}" for size in kept),
            *(", ".join(f"{name} {count}" for name, count in row[side].items()) for side in ("missing", "unsaid")),
        )
    return table
