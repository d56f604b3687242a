"""Quantities as text: byte sizes such as `36GiB` to read and print, rates and times such as `25GB/s` to read, and sizes
and durations rounded for a reader."""

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
_PREFIXES = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}
_QUANTITY = re.compile(r"(\d{1,24}(?:\.\d{1,24})?(?:[eE][+-]?\d{1,2})?)\s*([A-Za-zµ/]*)", re.ASCII)
_QUANTITIES: dict[str, dict[str, float]] = {
    "bytes": {unit: float(size) for unit, size in _UNITS.items()},
    "bytes/s": {f"{unit}/s": float(size) for unit, size in _UNITS.items()}
    | {f"{prefix}bit/s": factor / 8 for prefix, factor in _PREFIXES.items()},
    "FLOP/s": {f"{prefix}FLOP/s": factor for prefix, factor in _PREFIXES.items()},
    "s": {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9},
}
"""What a quantity may be written in: unit → times that of the quantity."""

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


def parse_quantity(text: str, quantity: str) -> float:
    """Reads `"25GB/s"` or `"200Gbit/s"`: a number with a unit of a quantity, which is `bytes`, `bytes/s`, `FLOP/s` or
    `s`. Case matters, so that a bit is not taken for a byte.

    Raises:
        GalvatronError: not a number with a unit, or one of something else.
    """
    units = _QUANTITIES[quantity]
    match = _QUANTITY.fullmatch(text.strip())
    if match is None or not match[2]:
        raise GalvatronError(f"{text!r} is not a number with a unit, such as '25{list(units)[3]}'")
    if match[2] not in units:
        raise GalvatronError(f"{text!r}: {match[2]!r} is no unit of {quantity}; {did_you_mean(match[2], units)}")
    return float(match[1]) * units[match[2]]


def print_bytes(size: int) -> str:
    """A size as the shortest exact text that `parse_bytes` reads back: `38654705664` is `36GiB`."""
    exact = [f"{size // n}{unit}" for unit, n in _UNITS.items() if unit != "B" and size and size % n == 0]
    return min([str(size), *exact], key=len)


def format_count(number: int, one: str, many: str = "") -> str:
    """So many of something: `1 device`, `2,048 devices`; `many` where that is not `one` with an s."""
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"


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


def relative_error(predicted: float, measured: float) -> float:
    """By how much a prediction is off, relative to what was measured: negative if it is too small."""
    return predicted / measured - 1


def format_flop(count: float) -> str:
    """A number of floating-point operations for a reader, rounded: `312 TFLOP`."""
    for exponent, prefix in ((18, "E"), (15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if abs(count) >= 10**exponent:
            return f"{count / 10**exponent:.4g} {prefix}FLOP"
    return f"{count:.4g} FLOP"
