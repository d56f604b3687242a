"""The arguments of an op, as values free of torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import sympy


@dataclass(frozen=True)
class Ref:
    """A use of a value as an op argument."""

    name: str


@dataclass(frozen=True)
class Const:
    """A torch constant as an op argument, by name: `Const("dtype", "f32")`, `Const("layout", "strided")`."""

    kind: str
    name: str


Arg = Ref | Const | int | float | bool | str | None | sympy.Expr | tuple["Arg", ...]
"""An op argument; a tuple is an ATen list argument, a `sympy.Expr` a size that depends on the batch size."""


def typed(arg: Arg) -> object:
    """What tells an argument from others: True == 1 == 1.0 and 0.0 == -0.0 in Python, yet they are different ones."""
    if isinstance(arg, tuple):
        return tuple(typed(a) for a in arg)
    if isinstance(arg, float):
        return float, repr(arg)
    return (type(arg), arg) if isinstance(arg, (bool, int)) else arg


def walk_refs(arg: Arg) -> Iterator[Ref]:
    """Every `Ref` inside an argument, in order."""
    if isinstance(arg, Ref):
        yield arg
    elif isinstance(arg, tuple):
        for item in arg:
            yield from walk_refs(item)


def map_refs(arg: Arg, rename: Callable[[str], str]) -> Arg:
    """An argument with every `Ref` renamed."""
    if isinstance(arg, Ref):
        return Ref(rename(arg.name))
    if isinstance(arg, tuple):
        return tuple(map_refs(a, rename) for a in arg)
    return arg
