"""Quantities as text: byte sizes such as `36GiB` to read and print, sizes and durations rounded for a reader."""

from __future__ import annotations

import re
from fractions import Fraction

from galvatron.errors import GalvatronError, did_you_mean

_UNITS: dict[str, int] = {
    "B": 1,
    "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40,
}  # fmt: skip
_BY_LOWER_CASE = {unit.lower(): unit for unit in _UNITS}
_SIZE = re.compile(r"(\d{1,24}(?:\.\d{1,24})?)\s*([A-Za-z]*)", re.ASCII)


def parse_bytes(text: str | int) -> int:
    """Reads a size in bytes: a plain int, or a number with a unit (`GiB` is 2³⁰, `GB` is 10⁹; case does not matter).

    Raises:
        GalvatronError: not a size, an unknown unit, a negative size, or not a whole number of bytes.
    """
    if isinstance(text, int) and not isinstance(text, bool):
        if text < 0:
            raise GalvatronError(f"a size in bytes cannot be negative: {text}")
        return text
    match = _SIZE.fullmatch(text.strip()) if isinstance(text, str) else None
    if match is None:
        raise GalvatronError(f"{text!r} is not a size in bytes; write it like '36GiB', '512MB' or '4096'")
    number, unit_text = match.groups()
    unit = _BY_LOWER_CASE.get(unit_text.lower() or "b")
    if unit is None:
        raise GalvatronError(f"size {text!r}: unknown unit {unit_text!r}; {did_you_mean(unit_text, _UNITS)}")
    size = Fraction(number) * _UNITS[unit]
    if size.denominator != 1:
        raise GalvatronError(f"size {text!r} is not a whole number of bytes")
    return int(size)


def print_bytes(size: int) -> str:
    """A size as the shortest exact text that `parse_bytes` reads back: `38654705664` is `36GiB`."""
    exact = [f"{size // n}{unit}" for unit, n in _UNITS.items() if unit != "B" and size and size % n == 0]
    return min([str(size), *exact], key=len)


def format_bytes(size: float) -> str:
    """A size for a reader, rounded, in binary units: `35.25 GiB`. Not meant to be read back."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if abs(size) >= _UNITS[unit]:
            return f"{size / _UNITS[unit]:.4g} {unit}"
    return f"{size:.0f} B"


def format_seconds(seconds: float) -> str:
    """A duration for a reader, rounded: `1.24 s`, `35.1 ms`, `4.2 us`."""
    for factor, unit in ((1.0, "s"), (1e-3, "ms")):
        if abs(seconds) >= factor:
            return f"{seconds / factor:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def format_flop(count: float) -> str:
    """A number of floating-point operations for a reader, rounded: `312 TFLOP`."""
    for exponent, prefix in ((18, "E"), (15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if abs(count) >= 10**exponent:
            return f"{count / 10**exponent:.4g} {prefix}FLOP"
    return f"{count:.4g} FLOP"
