"""A graph as SVG, readable by itself in light and dark."""

from __future__ import annotations

import html
from collections.abc import Sequence

import networkx

from galvatron.inspection.pictures.boxes import Box, boxes, boxes_of
from galvatron.inspection.pictures.layout import Arrangement, arranged

BOLD, LETTER, LINE, PADDING, BETWEEN, MARGIN = 7.7, 6.8, 15.0, 9.0, 30.0, 16.0
"""Widths and heights in pixels: of a letter of a name and of others, of a line of text, around a box's text, between
rows, around all."""

STYLE = """
.picture { --paper: #fbfbf9; --ink: #1c232d; --soft: #5d6772; --line: #a9b0b8; --box: #ffffff; --work: #e3edf8;
  --edge: #2f6cab; --given: #eeeeea; --kept: #dcf0ec; --end: #fbe7d0; --found: #dd7a0a; }
@media (prefers-color-scheme: dark) { .picture { --paper: #14171b; --ink: #e4e7ea; --soft: #98a2ad; --line: #59626c;
  --box: #1a1e23; --work: #1c2f45; --edge: #79b4f2; --given: #24292f; --kept: #17332f; --end: #402d17;
  --found: #f0993a; } }
.picture { background: var(--paper); font: 12px system-ui, "Segoe UI", Roboto, sans-serif; }
.picture text { fill: var(--soft); text-anchor: middle; }
.picture .line-0 { fill: var(--ink); font-weight: 600; }
.picture rect { fill: var(--box); stroke: var(--line); }
.picture .layer rect, .picture .op rect, .picture .epilogue rect { fill: var(--work); stroke: var(--edge); }
.picture .input rect, .picture .preamble rect, .picture .step rect { fill: var(--given); }
.picture .state rect { fill: var(--kept); }
.picture .result rect, .picture .conversion rect { fill: var(--end); }
.picture path { fill: none; stroke: var(--line); stroke-width: 1.3; }
.picture marker path { fill: var(--line); stroke: none; }
"""


def svg(graph: networkx.DiGraph) -> str:
    """The picture of a graph as a file of its own."""
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{drawn(boxes(graph), titled=True)}\n'


def drawn(shown: networkx.DiGraph, *, titled: bool) -> str:
    """The picture of boxes as an element of XML and HTML.

    Args:
        titled: whether boxes say what is known of them when the pointer is over them.
    """
    found = boxes_of(shown)
    places = arranged(shown, {node: _width(box) for node, box in found.items()})
    tops = _tops(places, found)
    width, height = places.width + 2 * MARGIN, tops[-1] - BETWEEN + MARGIN
    numbers = {node: number for number, node in enumerate(found)}
    edges = [
        f'<path data-edge="{numbers[first]} {numbers[second]}" marker-end="url(#tip-of-edge)" '
        f'd="{_edge(way, tops, tops[places.rows[first]] + _height(found[first]))}"/>'
        for (first, second), way in places.ways.items()
    ]
    nodes = [_node(box, places.centres[node] + MARGIN, tops[places.rows[node]], titled) for node, box in found.items()]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="picture" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}">\n<style>{STYLE}</style>\n'
        '<defs><marker id="tip-of-edge" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto"><path d="M0 0L8 4L0 8z"/></marker></defs>\n' + "\n".join([*edges, *nodes]) + "\n</svg>"
    )


def _width(box: Box) -> float:
    name, *others = map(len, box.lines)
    return max(name * BOLD, *(line * LETTER for line in others), 0.0) + 2 * PADDING


def _height(box: Box) -> float:
    return len(box.lines) * LINE + 2 * PADDING


def _tops(places: Arrangement, found: dict[object, Box]) -> list[float]:
    """Where each row begins, and where one behind the last would."""
    tallest = [0.0] * places.height
    for node, box in found.items():
        tallest[places.rows[node]] = max(tallest[places.rows[node]], _height(box))
    tops = [MARGIN]
    for height in tallest:
        tops.append(tops[-1] + height + BETWEEN)
    return tops


def _edge(way: Sequence[tuple[int, float]], tops: Sequence[float], foot: float) -> str:
    """A line from the foot of a box to the top of another one, straight down past rows between, as a path of SVG."""
    (_, first), *others = way
    x = first + MARGIN
    parts = [f"M{x:.1f} {foot:.1f}"]
    for row, centre in others:
        end, top = centre + MARGIN, tops[row]
        middle = top - BETWEEN / 2
        parts.append(f"V{top - BETWEEN:.1f}C{x:.1f} {middle:.1f} {end:.1f} {middle:.1f} {end:.1f} {top:.1f}")
        x = end
    return "".join(parts)


def _node(box: Box, centre: float, top: float, titled: bool) -> str:
    width, height = _width(box), _height(box)
    said = "\n".join(f"{name}: {text}" if name else text for name, text in box.facts)
    title = f"<title>{html.escape(said)}</title>" if titled else ""
    texts = (
        f'<text class="line-{index}" x="{centre:.1f}" y="{top + PADDING + (index + 0.75) * LINE:.1f}">'
        f"{html.escape(line)}</text>"
        for index, line in enumerate(box.lines)
    )
    return (
        f'<g class="node {box.kind}">{title}<rect x="{centre - width / 2:.1f}" y="{top:.1f}" '
        f'width="{width:.1f}" height="{height:.1f}" rx="6"/>{"".join(texts)}</g>'
    )
