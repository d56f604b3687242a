"""Writes the tables of device presets into docs/clusters.md, from the records themselves.

python benchmarks/preset_table.py
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from galvatron.ir import presets
from galvatron.ir.network import Level
from galvatron.ir.networks import NETWORKS
from galvatron.ir.presets import PRESETS
from galvatron.units import format_seconds

DOCUMENT = Path(__file__).parents[1] / "docs" / "clusters.md"
BEGIN, END = "<!-- tables of presets: python benchmarks/preset_table.py -->", "<!-- end of tables -->"


def tables() -> str:
    """Both tables: devices, and what joins them."""
    devices = (
        ("preset", "bf16 TFLOP/s of peak", "f32", "memory GiB", "bandwidth GB/s", "source"),
        *_devices(),
    )
    links = ("preset", "in a node", "across", "source"), *_links()
    return f"{_table(devices)}\n\n{_table(links)}"


def _devices() -> Iterator[tuple[str, ...]]:
    for name, preset in PRESETS.items():
        rates = dict(presets.device(name).matmul_flop_per_s)
        half = f"{rates['bf16'] / 1e12:.4g} of {preset.peak_tflops:g}" if preset.bf16 else f"{rates['bf16'] / 1e12:.3g}"
        yield (
            f"`{name}`",
            half if preset.bf16 else f"{half} (f16: {rates['f16'] / 1e12:.3g} of {preset.peak_tflops:g})",
            f"{rates['f32'] / 1e12:.3g}",
            f"{preset.memory_gib:g}",
            f"{preset.memory_gb_s:g}",
            preset.source,
        )


def _links() -> Iterator[tuple[str, ...]]:
    for name, network in NETWORKS.items():
        inside = [_level(level) for level in (network.bridge, network.node) if level is not None]
        yield f"`{name}`", ", ".join(inside), ", ".join(map(_level, network.outer)), network.source


def _level(level: Level) -> str:
    cards = "" if not level.cards else f" × {level.cards} for each part"
    pair = "" if level.pair_bytes_per_s is None else f" ({level.pair_bytes_per_s / 1e9:.3g} for two)"
    return f"{level.name}: {level.bytes_per_s / 1e9:.4g} GB/s{cards}{pair}, {format_seconds(level.latency_s)}"


def _table(rows: tuple[tuple[str, ...], ...]) -> str:
    first, *others = ("| " + " | ".join(row) + " |" for row in rows)
    return "\n".join([first, "|" + "---|" * len(rows[0]), *others])


def written(document: str) -> str:
    """The document with its tables as they are now."""
    before, _, rest = document.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{tables()}\n\n{END}{after}"


if __name__ == "__main__":
    DOCUMENT.write_text(written(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
