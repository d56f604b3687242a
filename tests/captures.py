"""Captures that a test run makes once: in a folder of the run, every process finds what another one has captured.

Tracing a small model takes seconds, and what follows takes milliseconds. What is kept is what capture gave in this run,
with the code as it is; `tests/parity/test_captures.py` holds it to a fresh capture. A capture is found by a name, or by
all that it was made from.
"""

from __future__ import annotations

import io
import os
import pickle
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from galvatron.ir.ops.foreign import adopt, foreign_targets

if TYPE_CHECKING:
    from galvatron.ir.capture import Captured

folder: Path | None = None
"""The folder of this run, set by `conftest.py`; without one nothing is kept."""

shared: Path | None = None
"""The folder from which `galvatron.compile` and `galvatron.capture` take captures for now, see `sharing`."""


def kept(name: str, capture: Callable[[], Captured]) -> Captured:
    """What `capture` gives, or gave to the first who asked under this name, which says all that it depends on."""
    return capture() if folder is None else _kept(folder, name.encode(), capture)


@contextmanager
def sharing(where: Path | None) -> Iterator[None]:
    """`galvatron.compile` and `galvatron.capture` trace equal models with equal weights, batches and options once.

    For tests of what comes after a capture. What is switched on in torch, or changed in a class or module, makes no
    difference here: a test that is about that needs fresh captures.

    Args:
        where: the folder of the run; None changes nothing.
    """
    global shared
    if where is None:
        yield
        return
    from galvatron import api

    fresh, before = api.capture_graph, shared

    def capture_graph(*arguments: Any, **options: Any) -> Captured:
        content = _content(arguments, options)
        if content is None:
            return fresh(*arguments, **options)
        return _kept(where, content, lambda: fresh(*arguments, **options))

    shared, api.capture_graph = where, capture_graph
    try:
        yield
    finally:
        shared, api.capture_graph = before, fresh


def _content(*values: Any) -> bytes | None:
    """What tells values from others, classes and functions by their names; None for what has none, inside of a test."""
    written = io.BytesIO()
    try:
        _Pickler(written).dump(values)
    except (pickle.PicklingError, AttributeError, TypeError):
        return None
    return written.getvalue()


class _Pickler(pickle.Pickler):
    """Writes equal tensors alike, wherever they are in memory."""

    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return NotImplemented
        data = None if value.is_meta else value.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        about = (value.dtype, value.shape, value.stride(), value.device, value.requires_grad, value.is_leaf)
        return type(value), (about, data, value.__dict__)


def _kept(where: Path, content: bytes, capture: Callable[[], Captured]) -> Captured:
    path = where / f"{sha256(content).hexdigest()}.captured"
    if not path.exists():
        captured = capture()
        with tempfile.NamedTemporaryFile(dir=where, delete=False) as file:
            pickle.dump((captured, foreign_targets(captured.program.graphs)), file)
        os.replace(file.name, path)  # in one piece: another process may be about to read it
    captured, operators = pickle.loads(path.read_bytes())
    adopt(operators)
    return captured
