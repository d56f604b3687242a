"""Where in the user's code something comes from."""

from __future__ import annotations

import linecache
import re
import sys
import sysconfig
import types
from collections.abc import Iterator
from functools import cache, lru_cache
from pathlib import Path

import torch
from torch import fx

from galvatron.ir.graph import Source

_TORCH = str(Path(str(torch.__file__)).parent) + "/"
_HERE = str(Path(__file__).parent) + "/"
_PACKAGE = Path(__file__).parents[2]
_UNDER_TORCH = ("-packages/sympy/", "-packages/mpmath/", "-packages/numpy/")
_STANDARD_LIBRARY = sysconfig.get_paths()["stdlib"] + "/"
OF_BATCH_NORM = (
    "call .eval() on this batch norm, or use a norm over each sample in its place, such as GroupNorm or LayerNorm"
)
"""What to do about one that takes its statistics over the batch."""
_CODE_CHARACTERS = 1000
_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in [^\n]*\n\s*(?P<code>[^\n]*)')

TURN = " turn {}"
"""What the name of a function ends with in the line of an op, where a turn of a loop is taken."""
_TURN = re.compile(r", in \S+ turn (\S+)\n")


def turn_of(node: fx.Node) -> str:
    """The turn of a loop in which a node was made, if any."""
    found = _TURN.search(node.meta.get("stack_trace") or "")
    return found[1] if found else ""


def source_of(node: fx.Node) -> Source | None:
    """The line of the user's model that made a node: the innermost stack frame outside torch."""
    scopes = list((node.meta.get("nn_module_stack") or {}).values())
    scope = re.sub(r"@\d+", "", str(scopes[-1][0])) if scopes else ""
    return _source_in(node.meta.get("stack_trace") or "", re.sub(r"^model(\.|$)", "", scope))


def where(node: fx.Node) -> str:
    """The head of an error message about a node, or nothing if its line is not known."""
    return located(source_of(node))


def located(source: Source | None) -> str:
    """The head of an error message about a line: `file:line: `code`: `."""
    return f"{source}: `{source.code}`: " if source else ""


@lru_cache(maxsize=4096)
def _source_in(stack_trace: str, scope: str) -> Source | None:
    for frame in reversed(list(_FRAME.finditer(stack_trace))):
        if is_user_file(frame["file"]):
            return Source(short_path(frame["file"]), int(frame["line"]), _shown(frame["code"]), scope)
    return None


def advice(source: Source | None, own: str) -> str:
    """What to do about a line: what its author can do, or for one of a library what a user of that can do."""
    if source is None or not _is_of_library(source.file):
        return own
    library = Path(source.file).parts[0]
    return (
        f"the line is in the library {library!r}: choose an option of its configuration that avoids it (such as "
        "another implementation of attention or of experts), or put a module of your own in its place"
    )


@cache
def _is_of_library(file: str) -> bool:
    """Whether a file, as `short_path` writes it, is of an installed package."""
    return "-packages/" in file or any("-packages" in root and Path(root, file).is_file() for root in sys.path)


def source_of_line(file: str, line: int) -> Source:
    """The source for a place in a file."""
    return Source(short_path(file), line, _shown(linecache.getline(file, line)))


def _shown(code: str) -> str:
    """A line of code as a program keeps it: the head of one that no person wrote."""
    return code.strip()[:_CODE_CHARACTERS]


def source_of_error(error: BaseException) -> Source | None:
    """The innermost line of the user's code that an error went through."""
    frames = [frame for frame in _frames(error) if is_user_file(frame[0])]
    return source_of_line(*frames[-1]) if frames else None


def _frames(error: BaseException) -> Iterator[tuple[str, int]]:
    traceback: types.TracebackType | None = error.__traceback__
    while traceback is not None:
        yield traceback.tb_frame.f_code.co_filename, traceback.tb_lineno
        traceback = traceback.tb_next


@cache
def is_user_file(file: str) -> bool:
    """Whether a file belongs to the user's model, which includes the libraries that it uses, but not torch."""
    if file.startswith((_TORCH, _HERE, "<")) or any(part in file for part in _UNDER_TORCH):
        return False
    if Path(file).parent == _PACKAGE:
        return False
    return "-packages/" in file or not file.startswith(_STANDARD_LIBRARY)


@cache
def short_path(file: str) -> str:
    """A file as it is found from `sys.path`, so that programs read the same on every machine."""
    roots = [root.rstrip("/") + "/" for root in sys.path if root]
    longest = max((root for root in roots if file.startswith(root)), key=len, default="")
    return file[len(longest) :]
