"""Python's collector of garbage, which a search does without."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Nobody looks for circles of objects in the block: a search keeps the hundreds of thousands that it makes, and
    going through them again and again is a tenth of its time. What is in no circle is freed as ever. Behind the block
    they count as old, so that nobody goes through all of them at once for being new; where somebody else has frozen
    objects, these stay so, and nothing is made old."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            if not gc.get_freeze_count():
                gc.freeze()
                gc.unfreeze()
            gc.enable()
