"""Profiles as tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from rich.table import Table

from galvatron.printing import cell
from galvatron.profiler.profile import DIRECTIONS
from galvatron.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from galvatron.profiler.profile import LayerTime, Measurement, Profile


def profile_tables(profile: Profile) -> list[Table]:
    """What was measured, and where: a table each for kernels, links, overlap and layers, where there is any."""
    kernels = [m for m in profile.measurements if not m.size("group")]
    links = [m for m in profile.measurements if m.size("group")]
    tables = [_environment_table(profile)]
    if kernels:
        tables.append(_table("kernels", kernels, _KERNEL_SIZES))
    if links:
        tables.append(_table("communication", links, _LINK_SIZES))
    if profile.overlaps:
        tables.append(_overlap_table(profile))
    if profile.classes:
        tables.append(_layer_table(profile))
    return tables


_KERNEL_SIZES = ("ranks", "count", "rows", "columns", "inner", "length", "width", "bytes")
_LINK_SIZES = ("group", "stride", "bytes")


def _environment_table(profile: Profile) -> Table:
    environment = profile.environment
    table = Table(title=cell(f"{profile.name}, {profile.taken}"), show_header=False)
    rows = {
        "device": f"{environment.device} ({environment.kind})",
        "memory": format_bytes(environment.memory_bytes),
        "ranks": f"{environment.nodes} nodes of {environment.devices_per_node}, over {environment.backend}",
        "host": f"{environment.cores} cores, {environment.threads} threads in each rank",
        "torch": environment.torch,
        **{name.replace("_", " "): _fact(name, number) for name, number in profile.facts},
    }
    for name, text in rows.items():
        table.add_row(cell(name), cell(text))
    return table


def _fact(name: str, number: float) -> str:
    return format_bytes(number) if name.endswith("_bytes") else f"{number:.3g}"


def _table(title: str, measurements: Sequence[Measurement], sizes: Iterable[str]) -> Table:
    """One row for each measurement, of those sizes that any of them has."""
    shown = [name for name in sizes if any(m.size(name) for m in measurements)]
    table = Table(title=cell(title))
    for name in ("what", "how", "type"):
        table.add_column(name, no_wrap=True)
    for name in (*shown, "seconds", "spread", "rate"):
        table.add_column(name, justify="right", no_wrap=True)
    for _, group in groupby(measurements, key=lambda m: (m.name, m.how, m.dtype, m.size("group"), m.size("stride"))):
        for m in group:
            numbers = [_size(name, m.size(name)) for name in shown]
            row = (m.name, m.how, m.dtype, *numbers, format_seconds(m.seconds), f"{m.spread:.1%}", _rate(m))
            table.add_row(*map(cell, row))
        table.add_section()
    return table


def _size(name: str, number: float) -> str:
    if not number:
        return ""
    return format_bytes(number) if name == "bytes" else f"{number:.0f}"


def _rate(m: Measurement) -> str:
    if m.name == "product":
        flop = 2 * m.size("count") * m.size("rows") * m.size("columns") * m.size("inner")
        return f"{flop / m.seconds / 1e9:.4g} GFLOP/s"
    return f"{m.size('bytes') / m.seconds / 1e9:.3g} GB/s" if m.size("bytes") else ""


def _overlap_table(profile: Profile) -> Table:
    table = Table(title="at the same time")
    for name in ("collective", "kernel"):
        table.add_column(name)
    for name in ("group", "bytes", "kernel alone", "collective alone", "both", "kernel's speed", "collective's"):
        table.add_column(name, justify="right")
    for o in profile.overlaps:
        times = map(format_seconds, (o.kernel_s, o.collective_s, o.both_s))
        speeds = (f"{o.kernel_speed:.0%}", f"{o.collective_speed:.0%}")
        row = (o.collective, o.kernel, str(o.group), format_bytes(o.bytes), *times, *speeds)
        table.add_row(*map(cell, row))
    return table


def _layer_table(profile: Profile) -> Table:
    """One row for each class and batch size, forward beside backward."""
    table = Table(title="layers, without their collectives")
    for name in ("class and strategy", "fingerprint"):
        table.add_column(name, no_wrap=True)
    for name in ("samples", "forward", "spread", "backward", "spread", "repeats"):
        table.add_column(name, justify="right")
    found: dict[str, dict[int, dict[str, LayerTime]]] = {}
    for time in profile.classes:
        found.setdefault(time.fingerprint, {}).setdefault(time.samples, {})[time.how] = time
    for fingerprint, by_samples in found.items():
        for samples, ways in sorted(by_samples.items()):
            shown = [text for how in DIRECTIONS for text in _with_spread(ways.get(how))]
            repeats = max(time.repeats for time in ways.values())
            name = next(iter(ways.values())).name
            table.add_row(*map(cell, (name, fingerprint, str(samples), *shown, str(repeats))))
        table.add_section()
    return table


def _with_spread(time: LayerTime | None) -> tuple[str, str]:
    return ("", "") if time is None else (format_seconds(time.seconds), f"{time.spread:.1%}")
