"""Parts of tensors, and tensors made of parts."""

from __future__ import annotations

from functools import partial

from galvatron.ir.ops import shapes
from galvatron.ir.ops.call import Call, along, by_line, known, of_rank, whole, with_whole
from galvatron.ir.ops.notation import DimNames, OpDims, Shape
from galvatron.ir.ops.operator import EVERY, Operator
from galvatron.ir.types import BATCH, Dim, TensorType, exact_quotient


def _split(call: Call) -> OpDims:
    """Equal parts: the dim is (parts, size of a part), the second may be sharded; unequal parts keep it whole."""
    (shape,) = call.operand_shapes()
    dim = int(call["dim"]) % len(shape)  # type: ignore[arg-type]  # an int by schema
    parts = {result[dim] for result in call.results}
    if len(parts) > 1 or exact_quotient(shape[dim], next(iter(parts))) != len(call.results):
        return with_whole(call, (dim,), linear=True)
    sizes = {f"d{i}": s for i, s in enumerate(shape) if i != dim and s != 1}
    rest = tuple((f"d{i}",) if f"d{i}" in sizes else () for i in range(len(shape)))
    part = next(iter(parts))
    inner: DimNames = ("part",) if part != 1 else ()
    operand = (*rest[:dim], ("parts", *inner) if len(call.results) > 1 else inner, *rest[dim + 1 :])
    result = (*rest[:dim], inner, *rest[dim + 1 :])
    all_sizes: dict[str, Dim] = {**sizes, "parts": len(call.results), **({"part": part} if inner else {})}
    return OpDims((operand,), (result,) * len(call.results), all_sizes, frozenset({"parts"}), sums=frozenset({0}))


def _joined(call: Call) -> OpDims:
    """Equal parts: the dim is (parts, size of a part) as in `_split`; unequal parts keep it whole."""
    shapes = call.operand_shapes()
    dim = int(call.arguments.get("dim", 0)) % len(shapes[0])  # type: ignore[arg-type]  # an int by schema
    return _joined_along(call, dim)


def _joined_along(call: Call, dim: int) -> OpDims:
    shapes = call.operand_shapes()
    if len(set(shapes)) > 1 or len(shapes) == 1:
        return with_whole(call, (dim,), linear=True)
    operand = tuple((f"d{i}",) if s != 1 else () for i, s in enumerate(shapes[0]))
    result = (*operand[:dim], ("parts", *operand[dim]), *operand[dim + 1 :])
    sizes = {f"d{i}": s for i, s in enumerate(shapes[0]) if s != 1} | {"parts": len(shapes)}
    return OpDims((operand,) * len(shapes), (result,), sizes, frozenset({"parts"}), sums=frozenset(range(len(shapes))))


def _sliced(call: Call) -> OpDims:
    """One of several equal parts of the batch is (parts, samples) of which it has the samples; others keep it whole."""
    shape, (result,) = call.shape("self"), call.results
    (dim,) = call.dims("dim", len(shape))
    inner, parts = exact_quotient(result[dim], BATCH), exact_quotient(shape[dim], result[dim])
    start = call["start"] or 0
    assert isinstance(start, Dim)
    aligned = start == 0 or exact_quotient(start, result[dim]) is not None
    if inner is None or parts in (None, 1) or call["step"] != 1 or not aligned:
        return with_whole(call, (dim,), linear=True)
    named = tuple((f"d{i}",) if i != dim and s != 1 else () for i, s in enumerate(shape))
    part: DimNames = ("samples",) if inner == 1 else ("samples", "inner")
    sizes: dict[str, Dim] = {f"d{i}": s for i, s in enumerate(shape) if i != dim and s != 1}
    sizes |= {"parts": parts, "samples": BATCH} | ({} if inner == 1 else {"inner": inner})
    names = (("parts", *part), part)
    operand, made = ((*named[:dim], n, *named[dim + 1 :]) for n in names)
    return OpDims((operand,), (made,), sizes, frozenset({"parts", "inner"} & sizes.keys()), sums=frozenset({0}))


def _overwritten(call: Call) -> OpDims:
    """A slice that is written anew; where it is all there is, so is each element."""
    if call.shape("src") == call.shape("self"):
        return by_line(call, "b*, b* -> b*")
    return with_whole(call, call.dims("dim", len(call.shape("self"))), linear=True)


def _pad(call: Call) -> OpDims:
    (shape,) = call.operand_shapes()
    padding = call["pad"]
    assert isinstance(padding, tuple)
    rank = len(shape)
    along = tuple(rank - 1 - i for i in range(len(padding) // 2) if padding[2 * i] != 0 or padding[2 * i + 1] != 0)
    return with_whole(call, along, linear=False)


def _stack(call: Call) -> OpDims:
    shapes = call.operand_shapes()
    new = int(call["dim"]) % (len(shapes[0]) + 1)  # type: ignore[arg-type]  # an int by schema
    operand = tuple((f"d{i}",) if s != 1 else () for i, s in enumerate(shapes[0]))
    result = (*operand[:new], (), *operand[new:])
    sizes = {f"d{i}": s for i, s in enumerate(shapes[0]) if s != 1}
    return OpDims((operand,) * len(shapes), (result,), sizes, sums=frozenset(range(len(shapes))))


def _repeated(call: Call) -> OpDims:
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


def _repeated_in_place(call: Call) -> OpDims:
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


def _windows(call: Call) -> OpDims:
    """`unfold`: the dim that is cut into windows is whole; their elements are a new last dim."""
    shape = call.shape("self")
    return _linear_in_one(shape, call.dims("dimension", len(shape)), lambda named: (*named, ()))


def _diagonal(call: Call) -> OpDims:
    """The two dims are whole, and their diagonal the last dim of what is read or written."""
    shape = call.shape("self")
    pair = (call.dims("dim1", len(shape))[0], call.dims("dim2", len(shape))[0])
    sizes = {f"d{i}": s for i, s in enumerate(shape) if i not in pair and s != 1}
    named = tuple(known(sizes, f"d{i}") for i in range(len(shape)))
    part = (*(names for i, names in enumerate(named) if i not in pair), ())
    if call.has("src"):
        return OpDims((named, part), (named,), sizes, sums=frozenset({0, 1}))
    return OpDims((named,), (part,), sizes, sums=frozenset({0}))


def _diagonal_matrices(call: Call) -> OpDims:
    """`diag_embed`: the last dim becomes the diagonal of two."""
    rank = len(call.results[0])
    pair = sorted((call.dims("dim1", rank)[0], call.dims("dim2", rank)[0]))

    def result(named: tuple[DimNames, ...]) -> tuple[DimNames, ...]:
        rest = iter(named[:-1])
        return tuple(() if i in pair else next(rest) for i in range(rank))

    return _linear_in_one(call.shape("self"), (rank - 2,), result)


def _linear_in_one(shape: Shape, along: tuple[int, ...], result) -> OpDims:
    """A linear op of one operand: `result` places the names that it has outside `along`."""
    sizes = {f"d{i}": s for i, s in enumerate(shape) if i not in along and s != 1}
    named = tuple(known(sizes, f"d{i}") for i in range(len(shape)))
    return OpDims((named,), (result(named),), sizes, sums=frozenset({0}))


def _numbers(sizes: dict[str, Dim], prefix: str) -> frozenset[str]:
    """Names whose size an op has as a plain number among its arguments."""
    return frozenset(name for name, size in sizes.items() if name.startswith(prefix) and isinstance(size, int))


_together = partial(Operator, dtype="promoted", moves="copy", elements="mixed")
_padded = partial(Operator, _pad, shapes=shapes.padded, dtype="same", elements="mixed")
_BOUNDS = ("start", "end")

OPERATORS: dict[str, Operator] = {
    "split": Operator(
        _split,
        written={"Tensor": "self.split(split_size, dim=)"},
        shapes=shapes.split,
        dtype="same",
        free=True,
        parts="split_size",
    ),
    "split_with_sizes": Operator(
        _split,
        written="self.split(split_sizes, dim=)",
        shapes=shapes.split,
        dtype="same",
        free=True,
        parts="split_sizes",
    ),
    "chunk": Operator(_split, written="self.chunk(chunks, dim=)", free=True),
    "slice": Operator(
        _sliced,
        written={"Tensor": "self[dim, start:end:step]"},
        bounds=_BOUNDS,
        shapes=shapes.sliced,
        dtype="same",
        free=True,
        padded=EVERY,
    ),
    "select": Operator(
        along("dim", linear=True),
        written={"int": "self[dim, index]"},
        shapes=shapes.select,
        dtype="same",
        free=True,
        padded=EVERY,
    ),
    "narrow": Operator(along("dim", linear=True), written="self.narrow(dim, start, length)", elements="moved"),
    "unbind": Operator(
        along("dim", linear=True), written={"int": "self.unbind(dim=)"}, shapes=shapes.unbind, dtype="same", free=True
    ),
    "narrow_copy": Operator(along("dim", linear=True)),
    "select_scatter": Operator(along("dim", linear=True), shapes=shapes.like_first),
    "slice_scatter": Operator(_overwritten, shapes=shapes.like_first, bounds=_BOUNDS),
    "cat": _together(_joined, written="torch.cat(tensors, dim=)", shapes=shapes.concatenate),
    "hstack": Operator(of_rank(2, "tensors", lambda call: _joined_along(call, 1))),
    "vstack": Operator(of_rank(2, "tensors", lambda call: _joined_along(call, 0))),
    "stack": _together(_stack, written="torch.stack(tensors, dim=)", shapes=shapes.stack, grows=True),
    "repeat": Operator(_repeated, written="self.repeat(*repeats)", times="repeats"),
    "tile": Operator(_repeated, times="dims"),
    "repeat_interleave.self_int": Operator(
        _repeated_in_place, written={"self_int": "self.repeat_interleave(repeats, dim=)"}, times="repeats"
    ),
    "combinations": Operator(rounds="r"),
    "unfold": Operator(_windows),
    "diagonal": Operator(_diagonal),
    "diagonal_scatter": Operator(_diagonal, shapes=shapes.like_first),
    "diag_embed": Operator(_diagonal_matrices, grows=True),
    "pad": _padded(written="F.pad(self, pad, mode=, value=)"),
    "constant_pad_nd": _padded(written="F.pad(self, pad, value=)", moves="copy"),
    "flip": Operator(
        along("dims", linear=True), written="self.flip(*dims)", shapes=shapes.like_first, elements="moved"
    ),
    "roll": Operator(
        along("dims", linear=True), written="self.roll(shifts, dims)", shapes=shapes.like_first, elements="moved"
    ),
    "rot90": Operator(along("dims", linear=True)),
    "fliplr": Operator(lambda call: with_whole(call, (1,), linear=True)),
    "flipud": Operator(lambda call: with_whole(call, (0,), linear=True)),
    "repeat_interleave": Operator(times="repeats"),
}
