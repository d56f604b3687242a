"""An op's call as its rule sees it: arguments by name, operands and results by shape."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from galvatron.ir.graph import Arg, Op, Ref, walk_refs
from galvatron.ir.ops.notation import DimNames, OpDims, Shape, parse_notation
from galvatron.ir.types import Dim, TensorType

Types = Mapping[str, TensorType]
DimsFunction = Callable[["Call"], OpDims]


class Call:
    """An op with its arguments laid out by the operator's schema: `call["dim"]` finds one however it was passed."""

    def __init__(self, op: Op, types: Types) -> None:
        self.op = op
        self.types = types
        self.arguments = op.arguments
        self.results = tuple(v.type.shape for v in op.results)

    def __getitem__(self, name: str) -> Arg:
        return self.arguments[name]

    def shape(self, name: str) -> Shape:
        return self.types[next(walk_refs(self.arguments[name])).name].shape

    def has(self, name: str) -> bool:
        """Whether an argument is a tensor."""
        return isinstance(self.arguments.get(name), Ref)

    def dims(self, name: str, rank: int) -> tuple[int, ...]:
        """An argument that names dimensions, as non-negative indices; all of them when it is empty or None.

        A number has none, whatever the argument says.
        """
        if rank == 0:
            return ()
        value = self.arguments.get(name)
        listed = value if isinstance(value, tuple) else () if value is None else (value,)
        return tuple(int(d) % rank for d in listed) if listed else tuple(range(rank))  # type: ignore[arg-type]  # ints by schema

    def operand_shapes(self) -> tuple[Shape, ...]:
        return tuple(self.types[name].shape for name in self.op.operands)


def by_line(call: Call, line: str) -> OpDims:
    """The dims that a rule line gives: its operands are the leading arguments, tensors by schema; one that is absent or
    a number is None."""
    notation = parse_notation(line)
    tensors = list(call.arguments.values())[: len(notation.operands)]
    shapes = tuple(call.types[a.name].shape if isinstance(a, Ref) else None for a in tensors)
    return notation.resolve(shapes, call.results)


def whole(call: Call) -> OpDims:
    """Nothing may be sharded."""
    return OpDims(tuple(map(unnamed, call.operand_shapes())), tuple(map(unnamed, call.results)), {})


def unnamed(shape: Shape) -> tuple[DimNames, ...]:
    """No dimension of a tensor may be sharded."""
    return ((),) * len(shape)


def known(sizes: Mapping[str, Dim], *names: str) -> DimNames:
    """Those of the names that have a size: a dimension of size one has no name."""
    return tuple(name for name in names if name in sizes)
