"""A graph as a page of HTML: its picture, with a search, and with what is known of each box where the pointer is."""

from __future__ import annotations

import html
from pathlib import Path

import networkx

from galvatron.inspection.pictures.boxes import boxes, boxes_of
from galvatron.inspection.pictures.svg import drawn
from galvatron.pages import as_text, filled
from galvatron.printing import one_line

FILES = Path(__file__).parent


def page(graph: networkx.DiGraph, title: str, unit: str) -> str:
    """The page.

    Args:
        unit: what figures are of.
    """
    shown = boxes(graph)
    return filled(
        FILES / "page.html",
        (FILES / "page.js").read_text(encoding="utf-8"),
        title=html.escape(one_line(title)),
        unit=html.escape(f"figures of {unit}"),
        style=(FILES / "page.css").read_text(encoding="utf-8"),
        picture=drawn(shown, titled=False),
        data=as_text({"facts": [box.facts for box in boxes_of(shown).values()]}),
    )
