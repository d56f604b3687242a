"""Pages of HTML that need nothing beside them: a body, a script, and figures as JSON that the script draws."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from pathlib import Path
from typing import Any

from galvatron.printing import one_line

FRAME = Path(__file__).with_name("pages.html")


def html_page(title: str, body: str, *, style: str, script: str, data: Any) -> str:
    """A page that runs no other script than its own and loads nothing.

    Args:
        title: any text.
        body: HTML, in which whatever is a stranger's is escaped.
        data: for JSON: what the script finds in the element `data`.
    """
    script = f'(() => {{\n"use strict";\n{script}\n}})();\n'
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return filled(
        FRAME,
        policy=f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'",
        title=escaped(title),
        style=style,
        body=body,
        data=_as_text(data),
        script=script,
    )


def filled(template: Path, **parts: str) -> str:
    """The text of a template, whose `{{name}}` are parts."""
    before, *rest = template.read_text(encoding="utf-8").split("{{")
    return before + "".join(parts[name] + tail for name, _, tail in (piece.partition("}}") for piece in rest))


def escaped(text: str) -> str:
    """Any text as HTML on one line."""
    return html.escape(one_line(text))


def _as_text(data: Any) -> str:
    """JSON that ends no element of HTML, whatever names are in it."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
