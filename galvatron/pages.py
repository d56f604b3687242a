"""Pages of HTML that need nothing beside them: a template, a script, and figures as JSON that the script draws."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any


def filled(template: Path, script: str, **parts: str) -> str:
    """The page of a template, whose `{{name}}` are parts, beside them the `script` and the `policy`, by which the page
    runs no other script and loads nothing.

    Args:
        parts: HTML: whatever is a stranger's is escaped, or as `as_text` gives it.
    """
    script = f'(() => {{\n"use strict";\n{script}\n}})();\n'
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    parts |= {
        "script": script,
        "policy": f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'",
    }
    before, *rest = template.read_text(encoding="utf-8").split("{{")
    return before + "".join(parts[name] + tail for name, _, tail in (piece.partition("}}") for piece in rest))


def as_text(data: Any) -> str:
    """JSON that ends no element of HTML, whatever names are in it."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
