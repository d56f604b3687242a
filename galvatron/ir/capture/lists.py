"""Lists of as many parts as there are samples, such as `[0] * batch_size`, of which forward makes a tensor.

A list has a length of Python, which would fix the size of the batch. So it is one only when forward asks for that, or
for what is in it; `torch.tensor` makes of it the tensor of the parts, repeated.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from galvatron.ir.capture.sources import is_user_file


class RepeatedList:
    """The parts of a list, as often as a symbolic size says. A list for whoever asks for its class; what asks for its
    content, or changes it, fixes the size, and from then on it is that list."""

    @property
    def __class__(self) -> type:  # type: ignore[override]  # what `isinstance` looks at
        return list

    def __init__(self, parts: list[Any], times: torch.SymInt) -> None:
        self._parts, self._times = parts, times
        self._list: list[Any] | None = None

    def tensor(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """What `torch.tensor` makes of it."""
        if self._list is not None:
            return torch.tensor(self._list, *args, **kwargs)
        parts = torch.tensor(self._parts, *args, **kwargs)
        return parts.repeat(self._times, *[1] * (parts.dim() - 1))

    def fixed(self) -> list[Any]:
        """The list of Python."""
        if self._list is None:
            self._list = self._parts * int(self._times)
        return self._list

    def __getattr__(self, name: str) -> Any:
        return getattr(self.fixed(), name)

    def __radd__(self, other: list[Any]) -> list[Any]:
        return other + self.fixed()


def _of_list(name: str) -> Callable[..., Any]:
    return lambda self, *args: getattr(self.fixed(), name)(*args)


for _name in (
    "__add__", "__contains__", "__delitem__", "__eq__", "__ge__", "__getitem__", "__gt__", "__iadd__", "__imul__",
    "__iter__", "__le__", "__len__", "__lt__", "__mul__", "__ne__", "__reduce_ex__", "__repr__", "__reversed__",
    "__rmul__", "__setitem__",
):  # fmt: skip
    setattr(RepeatedList, _name, _of_list(_name))


class _Tensors(TorchFunctionMode):
    """Makes tensors of repeated lists."""

    def __torch_function__(
        self, func: Any, _: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.tensor and args and type(args[0]) is RepeatedList:
            return args[0].tensor(*args[1:], **(kwargs or {}))
        return func(*args, **(kwargs or {}))


@contextmanager
def repeating_lists() -> Iterator[None]:
    """Inside the `with` block a list of plain numbers may be repeated by a symbolic size in the user's code."""

    def times(plain: Callable[[torch.SymInt, Any], Any]) -> Callable[[torch.SymInt, Any], Any]:
        def product(size: torch.SymInt, other: Any) -> Any:
            is_repeated = type(other) is list and other and is_user_file(sys._getframe(1).f_code.co_filename)
            return RepeatedList([*other], size) if is_repeated and can_be(other, size) else plain(size, other)

        return product

    def can_be(parts: list[Any], size: torch.SymInt) -> bool:
        is_plain = all(type(leaf) in (bool, int, float) for leaf in tree_leaves(parts))
        return is_plain and not size.node.expr.is_number and statically_known_true(size >= 0)

    with (
        mock.patch.object(torch.SymInt, "__mul__", times(torch.SymInt.__mul__)),
        mock.patch.object(torch.SymInt, "__rmul__", times(torch.SymInt.__rmul__)),
        _Tensors(),
    ):
        yield
