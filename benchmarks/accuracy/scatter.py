"""Predicted against measured seconds as an SVG: both axes logarithmic, on the diagonal what is right."""

from __future__ import annotations

import math
from collections.abc import Sequence

SIDE = 480
MARGIN = 56


def scatter(title: str, points: Sequence[tuple[float, float]]) -> str:
    """A drawing of (measured, predicted) seconds, with lines at equality and at a tenth off it."""
    low = math.log10(min(map(min, points))) - 0.05
    high = math.log10(max(map(max, points))) + 0.05
    inner = SIDE - 2 * MARGIN

    def at(log: float) -> float:
        return (log - low) / (high - low) * inner

    def x(log: float) -> float:
        return round(MARGIN + at(log), 1)

    def y(log: float) -> float:
        return round(SIDE - MARGIN - at(log), 1)

    def line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
        return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" {style}/>'

    def text(px: float, py: float, words: str, more: str = "") -> str:
        return f'<text x="{px}" y="{py}" text-anchor="middle" {more}>{words}</text>'

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{SIDE}" height="{SIDE}" viewBox="0 0 {SIDE} {SIDE}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{SIDE}" height="{SIDE}" fill="white"/>',
        f'<rect x="{MARGIN}" y="{MARGIN}" width="{inner}" height="{inner}" fill="none" stroke="black"/>',
        text(SIDE / 2, MARGIN / 2, title, 'font-size="14"'),
        text(SIDE / 2, SIDE - 12, "measured seconds of a step"),
        text(16, SIDE / 2, "predicted seconds of a step", f'transform="rotate(-90 16 {SIDE / 2})"'),
    ]
    for tick in _ticks(low, high):
        log = math.log10(tick)
        parts.append(line(x(log), y(low), x(log), y(high), 'stroke="#ddd"'))
        parts.append(line(x(low), y(log), x(high), y(log), 'stroke="#ddd"'))
        parts.append(text(x(log), SIDE - MARGIN + 16, f"{tick:g}"))
        parts.append(text(MARGIN - 18, y(log) + 4, f"{tick:g}"))
    for ratio, style in ((0.9, 'stroke="#999" stroke-dasharray="4"'), (1, 'stroke="black"'), (1.1, "")):
        off = math.log10(ratio)
        first, last = max(low, low - off), min(high, high - off)
        style = style or 'stroke="#999" stroke-dasharray="4"'
        parts.append(line(x(first), y(first + off), x(last), y(last + off), style))
    for measured, predicted in points:
        cx, cy = x(math.log10(measured)), y(math.log10(predicted))
        parts.append(f'<circle cx="{cx}" cy="{cy}" r="2.5" fill="#1f77b4" fill-opacity="0.5"/>')
    return "\n".join([*parts, "</svg>", ""])


def _ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten between two logarithms; powers alone where there are many."""
    steps = (1, 2, 5) if high - low < 2.5 else (1,)
    powers = range(math.floor(low), math.ceil(high) + 1)
    ticks = [step * 10.0**power for power in powers for step in steps]
    return [tick for tick in ticks if low <= math.log10(tick) <= high]
