"""A graph as a page of HTML: its picture, with a search, and with what is known of each box where the pointer is."""

from __future__ import annotations

from pathlib import Path

import networkx

from galvatron.inspection.pictures.boxes import boxes, boxes_of
from galvatron.inspection.pictures.svg import drawn
from galvatron.pages import escaped, filled, html_page

FILES = Path(__file__).parent


def page(graph: networkx.DiGraph, title: str, unit: str) -> str:
    """The page.

    Args:
        unit: what figures are of.
    """
    shown = boxes(graph)
    picture, figures = drawn(shown, titled=False), escaped(f"figures of {unit}")
    return html_page(
        title,
        filled(FILES / "body.html", title=escaped(title), unit=figures, picture=picture),
        style=(FILES / "page.css").read_text(encoding="utf-8"),
        script=(FILES / "page.js").read_text(encoding="utf-8"),
        data={"facts": [box.facts for box in boxes_of(shown).values()]},
    )
