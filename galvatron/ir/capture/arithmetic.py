"""Arithmetic of symbolic sizes, each computation done once.

For each tensor that is traced torch computes strides, numbers of elements and whether it is contiguous, in Python where
a size is symbolic: some twenty sums, products and comparisons, of which nearly all were computed before. They take a
quarter of the time of a capture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.fx.experimental.sym_node import SymNode

_OPERATIONS = ("add", "sub", "mul", "eq", "ne", "lt", "le", "gt", "ge", "sym_max", "sym_min", "and_", "or_")
"""Those of which the result follows from the two operands; that of a quotient also depends on bounds of a size, which
become narrower while a model is traced."""

_PLAIN = (int, bool, float, type(None))


@contextmanager
def computed_once() -> Iterator[None]:
    """Inside the `with` block a computation of symbolic sizes that was done before gives the result that it gave.

    What a trace records, by a mode that watches sizes, is computed anew.
    """
    known: dict[tuple[Any, ...], SymNode] = {}
    with ExitStack() as patches:
        for name in _OPERATIONS:
            if hasattr(SymNode, name):
                patches.enter_context(mock.patch.object(SymNode, name, _remembered(name, known)))
        yield


def _remembered(name: str, known: dict[tuple[Any, ...], SymNode]) -> Callable[[SymNode, Any], SymNode]:
    plain = getattr(SymNode, name)

    def compute(left: SymNode, right: Any) -> SymNode:
        key = None if get_proxy_mode() is not None else _key(name, left, right)
        if key is None:
            return plain(left, right)
        found = known.get(key)
        if found is None:
            found = known[key] = plain(left, right)
        return found

    return compute


def _key(name: str, left: SymNode, right: Any) -> tuple[Any, ...] | None:
    """What the result of an operation follows from; None where that cannot be told."""
    if type(left) is not SymNode or type(right) is not SymNode:
        return None
    sizes, hints = left.shape_env, (left._hint, right._hint)
    is_recorded = bool(left.fx_node or right.fx_node)
    if sizes is None or is_recorded or not all(isinstance(hint, _PLAIN) for hint in hints):
        return None
    # What a size was found to be equal to is put in its place; older torch counts this with all else that it learns.
    replaced = getattr(sizes, "_replacements_version_counter", sizes._version_counter)
    return name, id(sizes), replaced, left._expr, right._expr, left.pytype, right.pytype, *hints
