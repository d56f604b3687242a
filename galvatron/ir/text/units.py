"""Figures for people: bytes, seconds and FLOP with a unit and three digits."""

from __future__ import annotations


def _scaled(value: float, base: float, units: tuple[str, ...]) -> str:
    scale = 0
    while abs(value) >= base and scale < len(units) - 1:
        value /= base
        scale += 1
    return f"{value:.3g} {units[scale]}" if abs(value) < 999.5 else f"{value:.0f} {units[scale]}"


def format_bytes(count: float) -> str:
    """`1536` → `1.5 KiB`."""
    return _scaled(count, 1024, ("B", "KiB", "MiB", "GiB", "TiB", "PiB"))


def format_flop(count: float) -> str:
    """`3.12e14` → `312 TFLOP`."""
    return _scaled(count, 1000, ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP", "EFLOP"))


def format_seconds(duration_s: float) -> str:
    """`0.0123` → `12.3 ms`."""
    if duration_s and abs(duration_s) < 1:
        for factor, unit in ((1e3, "ms"), (1e6, "us")):
            if abs(duration_s) * factor >= 1 or unit == "us":
                return f"{duration_s * factor:.3g} {unit}"
    return f"{duration_s:.3g} s" if abs(duration_s) < 999.5 else f"{duration_s:.0f} s"
