"""Captures that a test run makes once: in a folder of the run, the workers find what another of them has captured.

Tracing a small model takes seconds, and what follows takes milliseconds. What is kept is what capture gave in this run,
with the code as it is; `tests/parity/test_captures.py` holds it to a fresh capture.
"""

from __future__ import annotations

import os
import pickle
import tempfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from galvatron.ir.ops.foreign import adopt, foreign_targets

if TYPE_CHECKING:
    from galvatron.ir.capture import Captured

folder: Path | None = None
"""The folder of this run, set by `conftest.py`; without one nothing is kept."""


def kept(name: str, capture: Callable[[], Captured]) -> Captured:
    """What `capture` gives, or gave to the first who asked under this name, which says all that it depends on."""
    if folder is None:
        return capture()
    path = folder / f"{sha256(name.encode()).hexdigest()}.captured"
    if not path.exists():
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
            captured = capture()
            pickle.dump((captured, foreign_targets(captured.program.graphs)), file)
        os.replace(file.name, path)  # in one piece: another worker may be about to read it
    captured, operators = pickle.loads(path.read_bytes())
    adopt(operators)
    return captured
