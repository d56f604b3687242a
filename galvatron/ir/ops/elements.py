"""Rules of ops that put elements somewhere: repeats, windows, diagonals, writes at an index."""

from __future__ import annotations

from galvatron.ir.graph import Ref
from galvatron.ir.ops.call import Call, DimsFunction, known, unnamed, whole
from galvatron.ir.ops.notation import DimNames, OpDims, Shape
from galvatron.ir.types import Dim, TensorType, exact_quotient

_MASKS = ("bool", "u8")


def repeated(call: Call) -> OpDims:
    """`repeat`, `tile`: each dim is (times, size). How often is a number, or follows from the sizes where it depends on
    the batch."""
    shape = call.shape("self")
    times = call["repeats"] if "repeats" in call.arguments else call["dims"]
    assert isinstance(times, tuple)
    rank = len(call.results[0])
    counts: list[Dim] = [1] * (rank - len(times)) + [t for t in times if not isinstance(t, (str, float))]  # type: ignore[misc]  # sizes
    padded: Shape = (1,) * (rank - len(shape)) + shape
    counts = [_times(*sizes) for sizes in zip(counts, padded, call.results[0], strict=True)]
    sizes = {f"d{i}": s for i, s in enumerate(padded) if s != 1} | {f"r{i}": t for i, t in enumerate(counts) if t != 1}
    operand = tuple(known(sizes, f"d{i}") for i in range(rank - len(shape), rank))
    result = tuple(known(sizes, f"r{i}", f"d{i}") for i in range(rank))
    return OpDims((operand,), (result,), sizes, _numbers(sizes, "r"), sums=frozenset({0}))


def repeated_in_place(call: Call) -> OpDims:
    """`repeat_interleave` by one number: (size, times), of a dim or of the flattened tensor."""
    if call["output_size"] is not None:
        return whole(call)
    shape = call.shape("self")
    sizes: dict[str, Dim] = {f"d{i}": s for i, s in enumerate(shape) if s != 1}
    repeats = call["repeats"]
    assert isinstance(repeats, Dim)
    before, after = (TensorType("i64", s).numel for s in (shape, call.results[0]))
    times = _times(repeats, before, after)
    if times != 1:
        sizes["r"] = times
    operand = tuple(known(sizes, f"d{i}") for i in range(len(shape)))
    if call["dim"] is None:
        result: tuple[DimNames, ...] = (known(sizes, *(f"d{i}" for i in range(len(shape))), "r"),)
    else:
        (dim,) = call.dims("dim", len(shape))
        result = (*operand[:dim], known(sizes, f"d{dim}", "r"), *operand[dim + 1 :])
    return OpDims((operand,), (result,), sizes, _numbers(sizes, "r"), sums=frozenset({0}))


def _times(given: Dim, before: Dim, after: Dim) -> Dim:
    """How often a size is repeated: as given, or as a size before and after says."""
    found = None if isinstance(given, int) else exact_quotient(after, before)
    return given if found is None else found


def windows(call: Call) -> OpDims:
    """`unfold`: the dim that is cut into windows is whole; their elements are a new last dim."""
    shape = call.shape("self")
    return _linear_in_one(shape, call.dims("dimension", len(shape)), lambda named: (*named, ()))


def diagonal(call: Call) -> OpDims:
    """The two dims are whole, and their diagonal the last dim of what is read or written."""
    shape = call.shape("self")
    pair = (call.dims("dim1", len(shape))[0], call.dims("dim2", len(shape))[0])
    sizes = {f"d{i}": s for i, s in enumerate(shape) if i not in pair and s != 1}
    named = tuple(known(sizes, f"d{i}") for i in range(len(shape)))
    part = (*(names for i, names in enumerate(named) if i not in pair), ())
    if call.has("src"):
        return OpDims((named, part), (named,), sizes, sums=frozenset({0, 1}))
    return OpDims((named,), (part,), sizes, sums=frozenset({0}))


def diagonal_matrices(call: Call) -> OpDims:
    """`diag_embed`: the last dim becomes the diagonal of two."""
    rank = len(call.results[0])
    pair = sorted((call.dims("dim1", rank)[0], call.dims("dim2", rank)[0]))

    def result(named: tuple[DimNames, ...]) -> tuple[DimNames, ...]:
        rest = iter(named[:-1])
        return tuple(() if i in pair else next(rest) for i in range(rank))

    return _linear_in_one(call.shape("self"), (rank - 2,), result)


def indexed(call: Call) -> OpDims:
    """`index_add` and its like: `source` is written at indices of one dim, which is whole; all else is as in `self`."""
    shape = call.shape("self")
    along = call.dims("dim", len(shape))
    sizes = {f"d{i}": s for i, s in enumerate(shape) if i not in along and s != 1}
    named = tuple(known(sizes, f"d{i}") for i in range(len(shape)))
    tensors = [(name, call.types[a.name].shape) for name, a in call.arguments.items() if isinstance(a, Ref)]
    operands = tuple(named if name in ("self", "source") else unnamed(shape) for name, shape in tensors)
    return OpDims(operands, (named,), sizes)


def written(call: Call) -> OpDims:
    """`index_put`: dims that are not indexed are those of the values; a mask that chooses where one number goes is read
    element by element."""
    shape, indices = call.shape("self"), call["indices"]
    values = call.shape("values")
    assert isinstance(indices, tuple)
    refs = {i: index for i, index in enumerate(indices) if isinstance(index, Ref)}
    masks = [index for index in refs.values() if call.types[index.name].dtype in _MASKS]
    if masks:
        if len(refs) > 1 or 0 not in refs or any(size != 1 for size in values):
            return whole(call)
        sizes = {f"d{i}": s for i, s in enumerate(shape) if s != 1}
        named = tuple(known(sizes, f"d{i}") for i in range(len(shape)))
        mask = named[: len(call.types[masks[0].name].shape)]
        return OpDims((named, mask, unnamed(values)), (named,), sizes)
    positions = sorted(refs)
    sizes = {f"d{i}": s for i, s in enumerate(shape) if i not in refs and s != 1}
    named = tuple(known(sizes, f"d{i}") for i in range(len(shape)))
    index_shapes = [call.types[refs[i].name].shape for i in positions]
    at = positions[0] if positions == list(range(positions[0], positions[-1] + 1)) else 0
    rest = [n for i, n in enumerate(named) if i not in refs]
    chosen = [*rest[:at], *[()] * max(map(len, index_shapes)), *rest[at:]]
    aligned = tuple(() if size == 1 else n for n, size in zip(chosen[len(chosen) - len(values) :], values, strict=True))
    return OpDims((named, *map(unnamed, index_shapes), aligned), (named,), sizes)


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


def _linear_in_one(shape: Shape, along: tuple[int, ...], result) -> OpDims:
    """A linear op of one operand: `result` places the names that it has outside `along`."""
    sizes = {f"d{i}": s for i, s in enumerate(shape) if i not in along and s != 1}
    named = tuple(known(sizes, f"d{i}") for i in range(len(shape)))
    return OpDims((named,), (result(named),), sizes, sums=frozenset({0}))


def _numbers(sizes: dict[str, Dim], prefix: str) -> frozenset[str]:
    """Names whose size an op has as a plain number among its arguments."""
    return frozenset(name for name, size in sizes.items() if name.startswith(prefix) and isinstance(size, int))
