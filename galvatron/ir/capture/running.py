"""The user's line that is running while a model is traced, and the tensors that it is given."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree

from galvatron.ir.capture.sources import advice, is_user_file, located, source_of_line
from galvatron.ir.graph import Source

_HERE = Path(__file__).parent

turns_running: list[str] = []
"""The turn that is being taken of a loop whose turns are all taken (`capture.turns`), if any."""


def tensors_in(tree: Any) -> list[torch.Tensor]:
    """The tensors among arguments or results, however nested."""
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def here() -> str:
    """The head of an error message about the user's line that is running."""
    return located(line_running())


def advised(own: str) -> str:
    """What to do about the user's line that is running; see `sources.advice`."""
    return advice(line_running(), own)


def line_running() -> Source | None:
    """The user's line that is running."""
    frame = user_frame()
    return source_of_line(frame.f_code.co_filename, frame.f_lineno) if frame else None


def user_frame() -> types.FrameType | None:
    """The innermost frame of the user's code that is running."""
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None and not is_user_file(frame.f_code.co_filename):
        frame = frame.f_back
    return frame


def calling_file() -> str:
    """The file that is calling torch, whatever modes of capture the call went through, in any order."""
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None and Path(frame.f_code.co_filename).parent == _HERE:
        frame = frame.f_back
    return "" if frame is None else frame.f_code.co_filename
