"""Sizes of operands and arguments of an op: what fits together, as the functions of `shapes` ask."""

from __future__ import annotations

from collections.abc import Sequence

import sympy

from galvatron.ir.ops.arguments import Arg
from galvatron.ir.ops.notation import Shape
from galvatron.ir.types import Dim, TensorType, simplify_dim


class ShapeError(ValueError):
    """Operands that an op cannot take; the message says why."""


def same(a: Dim, b: Dim) -> bool:
    """Whether two sizes are equal for every batch size."""
    return a == b or simplify_dim(a - b) == 0


def same_shape(a: Shape, b: Shape) -> bool:
    return len(a) == len(b) and all(map(same, a, b))


def broadcast(shapes: Sequence[Shape]) -> Shape:
    """The common shape of operands of a pointwise op."""
    result: list[Dim] = [1] * max(map(len, shapes), default=0)
    for shape in shapes:
        for axis, dim in enumerate(shape, len(result) - len(shape)):
            if same(result[axis], 1):
                result[axis] = dim
            elif not same(dim, 1) and not same(dim, result[axis]):
                raise ShapeError(f"sizes {result[axis]} and {dim} do not broadcast")
    return tuple(result)


def axis_of(arg: Arg, rank: int) -> int:
    """The dimension that an argument names, counted from the first; 0 of a number."""
    at = whole_number(arg)
    if not -max(rank, 1) <= at < max(rank, 1):
        raise ShapeError(f"dimension {at} of a tensor of rank {rank}")
    return at % rank if rank else 0


def axes_of(arg: Arg, rank: int) -> list[int]:
    found = [axis_of(a, rank) for a in (arg if isinstance(arg, tuple) else (arg,))]
    if len(set(found)) < len(found):
        raise ShapeError(f"a dimension is named twice in {arg}")
    return found


def whole_number(arg: Arg) -> int:
    expect(type(arg) is int)
    assert isinstance(arg, int)
    return arg


def sizes_of(arg: Arg) -> Shape:
    """The sizes that an argument lists, -1 where one has to be found."""
    if not isinstance(arg, tuple):
        raise ValueError
    sizes: list[Dim] = []
    for size in arg:
        if type(size) is not int and not isinstance(size, sympy.Expr):
            raise ValueError
        sizes.append(size)  # type: ignore[arg-type]  # narrowed above
    return tuple(sizes)


def counted(arg: Arg) -> Shape:
    """Sizes of which none has to be found."""
    sizes = sizes_of(arg)
    expect(all(size >= 0 for size in sizes if isinstance(size, int)))
    return sizes


def expect(usual: bool) -> None:
    """Of an op that is called in another way than the usual one, torch tells whether it may be, and what it gives."""
    if not usual:
        raise ValueError


def elements(shape: Shape) -> Dim:
    return TensorType("bool", shape).numel


def told(shape: Shape) -> str:
    return f"[{', '.join(map(str, shape))}]"


def without(shape: Shape, at: int) -> Shape:
    return shape[:at] + shape[at + 1 :]


def contract(left: Dim, right: Dim) -> None:
    if not same(left, right):
        raise ShapeError(f"cannot contract a dimension of {left} with one of {right}")
