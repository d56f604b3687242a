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
_WITHOUT_PARTS = frozenset((type(None), bool, int, float, str, torch.dtype, torch.device, torch.SymInt))

turns_running: list[str] = []
"""The turn that is being taken of a loop whose turns are all taken (`capture.turns`), if any."""


def tensors_in(tree: Any) -> list[torch.Tensor]:
    """The tensors among arguments or results, however nested."""
    found: list[torch.Tensor] = []
    _gather(tree, found)
    return found


def _gather(tree: Any, found: list[torch.Tensor]) -> None:
    """Asked for all that torch is called with, which is nearly always made of what is known here."""
    kind = type(tree)
    if kind is tuple or kind is list:
        for part in tree:
            _gather(part, found)
    elif kind is dict:
        for part in tree.values():
            _gather(part, found)
    elif kind in _WITHOUT_PARTS:
        return
    elif isinstance(tree, torch.Tensor):
        found.append(tree)
    else:
        found += [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


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
