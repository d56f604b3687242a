"""What answers that are kept between runs depend on beside what is asked: this package and torch."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path


def digest(*parts: str) -> str:
    """A name for what follows from some texts and from the code: another one after any change of either."""
    found = hashlib.sha256()
    for part in (*parts, _code()):
        found.update(f"{len(part)};{part}".encode(errors="surrogatepass"))
    return found.hexdigest()[:32]


@cache
def _code() -> str:
    """The versions of torch and of this package, which is told file by file."""
    import torch

    root = Path(__file__).parents[1]
    files = [(str(path.relative_to(root)), path.stat()) for path in sorted(root.rglob("*.py"))]
    return repr([torch.__version__, *((name, stat.st_size, stat.st_mtime_ns) for name, stat in files)])
