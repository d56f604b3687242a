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

    def type(self, name: str) -> TensorType:
        return self.types[next(walk_refs(self.arguments[name])).name]

    def shape(self, name: str) -> Shape:
        return self.type(name).shape

    def argument(self, position: int) -> Arg:
        """An argument by the place of its parameter."""
        return list(self.arguments.values())[position]

    def tensor(self, position: int) -> Shape:
        """The shape of an argument.

        Raises:
            LookupError: it is no tensor.
        """
        (shape,) = self._shapes(self.argument(position))
        return shape

    def tensors(self, position: int) -> tuple[Shape, ...]:
        """The shapes of a list of tensors.

        Raises:
            LookupError: it has something else in it.
        """
        listed = self.argument(position)
        return self._shapes(*listed) if isinstance(listed, tuple) else ()

    def _shapes(self, *arguments: Arg) -> tuple[Shape, ...]:
        if not all(isinstance(a, Ref) for a in arguments):
            raise LookupError
        return tuple(self.types[ref.name].shape for ref in walk_refs(arguments))

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
    a number is None. Of tensors with more or fewer dimensions than the line tells, which few calls have, such as a bias
    of several rows, nothing may be sharded."""
    notation = parse_notation(line)
    tensors = list(call.arguments.values())[: len(notation.operands)]
    shapes = tuple(call.types[a.name].shape if isinstance(a, Ref) else None for a in tensors)
    return notation.resolve(shapes, call.results) if notation.fits(shapes, call.results) else whole(call)


def whole(call: Call) -> OpDims:
    """Nothing may be sharded."""
    return OpDims(tuple(map(unnamed, call.operand_shapes())), tuple(map(unnamed, call.results)), {})


def unnamed(shape: Shape) -> tuple[DimNames, ...]:
    """No dimension of a tensor may be sharded."""
    return ((),) * len(shape)


def known(sizes: Mapping[str, Dim], *names: str) -> DimNames:
    """Those of the names that have a size: a dimension of size one has no name."""
    return tuple(name for name in names if name in sizes)


def pointwise(call: Call) -> OpDims:
    terms = ", ".join("b*" for _ in call.op.operands)
    return parse_notation(f"{terms} -> {', '.join('b*' for _ in call.results)}").resolve(
        call.operand_shapes(), call.results
    )


def along(argument: str, *, linear: bool = False) -> DimsFunction:
    """A rule for an op that works along the dims an argument names, and independently along all others.

    The named dims are indivisible; a result has them unless it has fewer dimensions than the operand.
    """

    def rule(call: Call) -> OpDims:
        shape = call.operand_shapes()[0]
        along = call.dims(argument, len(shape))
        return with_whole(call, along, linear)

    return rule


def with_whole(call: Call, along: tuple[int, ...], linear: bool) -> OpDims:
    """All operands and results share their dims, except those in `along` and those of differing sizes."""
    shapes = call.operand_shapes()
    rank = len(shapes[0])
    of_all = [s for s in (*shapes, *call.results) if len(s) == rank]
    shared = [i for i in range(rank) if i not in along and all(s[i] == shapes[0][i] for s in of_all)]
    sizes: dict[str, Dim] = {f"d{i}": shapes[0][i] for i in shared if shapes[0][i] != 1}

    def names(shape: Shape) -> tuple[DimNames, ...]:
        kept = range(rank) if len(shape) == rank else [i for i in range(rank) if i not in along]
        return tuple((f"d{i}",) if f"d{i}" in sizes else () for i in kept)

    across = {f"w{i}": shapes[0][i] for i in along}
    return OpDims(
        tuple(names(s) for s in shapes),
        tuple(names(s) for s in call.results),
        {**sizes, **across},
        frozenset(across),
        sums=frozenset(range(len(shapes))) if linear else frozenset(),
    )


def paired(argument: str) -> DimsFunction:
    """A rule for an op on two tensors that broadcast, along the dims an argument names (the last without such)."""

    def rule(call: Call) -> OpDims:
        shapes = call.operand_shapes()
        rank = max(map(len, shapes))
        if argument in call.arguments and call[argument] is None:
            return whole(call)
        along = call.dims(argument, rank) if argument in call.arguments else (rank - 1,)
        sizes: dict[str, Dim] = {}
        for shape in shapes:
            for i, size in enumerate(shape, rank - len(shape)):
                if i not in along and size != 1:
                    sizes[f"d{i}"] = size

        def names(shape: Shape) -> tuple[DimNames, ...]:
            placed = enumerate(shape, rank - len(shape))
            return tuple(known(sizes, f"d{i}") if size != 1 else () for i, size in placed)

        def result(shape: Shape) -> tuple[DimNames, ...]:
            kept = range(rank) if len(shape) == rank else [i for i in range(rank) if i not in along]
            return tuple(known(sizes, f"d{i}") for i in kept)

        return OpDims(tuple(map(names, shapes)), tuple(map(result, call.results)), sizes)

    return rule


def of_rank(rank: int, argument: str, rule: DimsFunction) -> DimsFunction:
    """A rule for an argument of at least this rank; below, the op stays whole."""
    return lambda call: rule(call) if len(call.shape(argument)) >= rank else whole(call)
