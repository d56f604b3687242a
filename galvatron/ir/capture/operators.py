"""Operators that no program contains are refused when the model is captured."""

from __future__ import annotations

from galvatron.errors import CaptureError
from galvatron.ir.capture.sources import located
from galvatron.ir.graph import Graph
from galvatron.ir.text.targets import is_known_target, unknown_target


def check_operators(graph: Graph) -> None:
    """Every op is one that a program may contain.

    Raises:
        CaptureError: one is not; names its source line.
    """
    for op in graph.ops:
        if not is_known_target(op.target):
            raise CaptureError(f"{located(op.source)}{unknown_target(op.target)}")
