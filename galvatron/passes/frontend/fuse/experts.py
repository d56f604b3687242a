"""Rows that are multiplied by matrices which they choose: `galvatron.grouped_linear`, in whatever way a model does it.

A model may look up a matrix for each row, and multiply in a batch (`looked_up_matrices`). Or it sorts the rows by what
they choose, multiplies in groups, and puts them back (`put_back`): all that is done to sorted rows one by one may be
done to rows in their own order, so that the sorting cancels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from galvatron.ir.graph import Arg, Op, Ref
from galvatron.ir.ops.table import op_dims
from galvatron.ir.random import is_random
from galvatron.ir.types import TensorType, simplify_dim
from galvatron.rewriting import Builder

_GROUPED = "galvatron.grouped_linear.default"

_ELEMENTS = (
    "reshape", "unsqueeze", "squeeze", "permute", "transpose", "select", "slice", "expand", "index", "gather",
    "index_select", "repeat_interleave", "split", "unbind", "clone",
)  # fmt: skip
"""Operators whose results have elements of their first operand, and no others."""
_MOST_BINS = 1024
"""For so many, rounding in 32 bits puts no whole number into a bin beside its own."""
_HOLD_IDS = ("f32", "f64", "i32", "i64")
"""Element types that have all numbers up to there."""


def looked_up_matrices(op: Op, build: Builder) -> Ref | None:
    """Each row times a matrix that was looked up for it, in a batch of products."""
    left, right = op.args[:2]
    for matrices, rows, transposed in ((left, right, False), (right, left, True)):
        chosen, thin = _lookup(matrices, build), build.type_of(rows).shape
        if chosen is None or len(thin) != 3 or thin[1 if transposed else 2] != 1:
            continue
        table, ids = chosen
        count = build.type_of(ids).shape[0]
        if thin[0] != count:
            continue
        weight = build.emit("aten.transpose.int", table, 1, 2) if transposed else table
        flat = build.reshape(rows, (count, thin[2 if transposed else 1]))
        type_ = op.result.type.with_shape((count, build.type_of(weight).shape[1]))
        found = grouped(flat, weight, ids, type_, build)
        return found and build.reshape(found, op.result.type.shape)
    return None


def grouped(rows: Ref, weight: Ref, ids: Ref, type_: TensorType, build: Builder) -> Ref | None:
    """Rows times the matrices that they choose, of a type; None where operands or result are of unlike element types.

    The matrices are of the rows' number of columns, and every id is one of them.
    """
    alike = build.type_of(rows).dtype == build.type_of(weight).dtype == type_.dtype
    return build.emit(_GROUPED, rows, weight, ids, type_=type_) if alike else None


def _lookup(arg: Arg, build: Builder) -> tuple[Ref, Ref] | None:
    """The table and the ids of matrices that are looked up, each of which is in the table."""
    op = build.producer(arg)
    if op is None or op.target != "aten.index.Tensor":
        return None
    table, indices = op["self"], op["indices"]
    assert isinstance(table, Ref) and isinstance(indices, tuple)
    matrices = build.type_of(table).shape
    ids = indices[0] if len(indices) == 1 else None
    if len(matrices) != 3 or not isinstance(ids, Ref) or len(build.type_of(ids).shape) != 1:
        return None
    return (table, ids) if are_below(ids, matrices[0], build) else None


def are_below(ids: Arg, count: Arg, build: Builder) -> bool:
    """Whether whole numbers are known to be at least 0 and less than a count."""
    bound = bound_of(ids, build)
    return bound is not None and isinstance(count, int) and bound <= count


def bound_of(ids: Arg, build: Builder) -> int | None:
    """What whole numbers are known to be less than, if they are known not to be less than 0."""
    return build.known(_bound, ids.name) if isinstance(ids, Ref) else None


def _bound(name: str, build: Builder) -> int | None:
    """See `bound_of`: places in a dimension, remainders, or what is clamped."""
    op = build.producer(Ref(name))
    if op is None or not op.operands or build.types[name].dtype not in ("i32", "i64"):
        return None
    shape = build.types[op.operands[0]].shape
    if op.name in ("topk", "sort", "argsort", "argmax", "argmin", "max", "min") and name == op.results[-1].name:
        dim = op.get("dim")
        size = shape[dim] if isinstance(dim, int) and shape else None
        is_place = op.name.startswith("arg") or len(op.results) == 2
        return size if is_place and isinstance(size, int) else None
    if op.name == "clamp" and isinstance(least := op.get("min"), int) and isinstance(most := op.get("max"), int):
        return most + 1 if 0 <= least <= most else None
    if op.name in ("cat", "either"):
        bounds = [build.known(_bound, operand) for operand in op.operands]
        known = [bound for bound in bounds if bound is not None]
        return max(known) if len(known) == len(bounds) else None
    if op.target == "aten.remainder.Scalar":  # of the divisor's sign
        divisor = op["other"]
        return divisor if type(divisor) is int and divisor > 0 else None
    places = op.target == "aten.repeat_interleave.Tensor"  # not elements, of what counts them
    return build.known(_bound, op.operands[0]) if op.name in (*_ELEMENTS, "sort") and not places else None


def put_back(op: Op, build: Builder) -> Ref | None:
    """Rows that were sorted by what they choose, multiplied in groups, and put back into their order."""
    found = _put_back(op, build)
    sort = _sort_of(found[1], build) if found else None
    if found is None or sort is None:
        return None
    before = len(build.ops)
    unsorted = _Unsorted(sort, build)
    result = unsorted.value(found[0].name, last=op)
    if result is None:
        build.take_back(before)
    return result


def _put_back(op: Op, build: Builder) -> tuple[Ref, Ref] | None:
    """The sorted rows that an op puts back, and the order that they were sorted in."""
    value, indices = op["self"], op["indices"]
    index = indices[0] if isinstance(indices, tuple) and len(indices) == 1 else None
    if not isinstance(value, Ref) or not isinstance(index, Ref):
        return None
    order = _inverted(index, build)
    return None if order is None else (value, order)


def _inverted(index: Ref, build: Builder) -> Ref | None:
    """The order whose inverse these indices are."""
    op = build.producer(index)
    if op is None:
        return None
    if op.name in ("argsort", "sort") and index.name == op.results[-1].name and not op["descending"]:
        (operand,) = op.operands
        return Ref(operand)
    if op.target != "aten.index_put.default" or op["accumulate"]:
        return None
    indices = op["indices"]
    assert isinstance(indices, tuple)
    order, places = indices[0] if len(indices) == 1 else None, build.producer(op["values"])
    count = op.result.type.shape
    if places is None or places.name != "arange" or len(count) != 1 or not isinstance(order, Ref):
        return None
    counts_up = (
        places.result.type.shape == count and places.get("start") in (None, 0) and places.get("step") in (None, 1)
    )
    return order if counts_up and build.type_of(order).shape == count else None


def _sort_of(order: Ref, build: Builder) -> Op | None:
    """The op that sorts a list, from the least on, and says in which order it then is."""
    op = build.producer(order)
    sorts = op is not None and op.name in ("sort", "argsort") and op.results[-1].name == order.name
    if op is None or not sorts or op["descending"] or len(op.results[-1].type.shape) != 1:
        return None
    return op


class _Unsorted:
    """What values of sorted rows are in the rows' own order, of all that follows a sort in the graph."""

    def __init__(self, sort: Op, build: Builder) -> None:
        self._sort, self._build = sort, build
        self._ids, self._order = Ref(sort.operands[0]), Ref(sort.results[-1].name)
        self._count = build.type_of(self._order).shape[0]
        self._made: dict[str, Ref] = {sort.results[0].name: self._ids} if len(sort.results) == 2 else {}
        """By name, values of sorted rows, in the rows' own order; the sorted ids are the first."""
        self._by: dict[str, Op] = {}
        """The ops that make them."""
        for op in build.ops[build.ops.index(sort) + 1 :]:
            for value, made in zip(op.results, self._of(op), strict=False):
                self._made[value.name] = made
                self._by[value.name] = op

    def value(self, name: str, last: Op) -> Ref | None:
        """A value of sorted rows in their own order, if a product of groups goes into it, and if nothing but `last`
        and what leads to it reads sorted rows."""
        ops: dict[str, Op] = {}
        waiting = [name]
        while waiting:
            op = self._by.get(waiting.pop())
            if op is not None and op.results[0].name not in ops:
                ops[op.results[0].name] = op
                waiting.extend(op.operands)
        inside = Counter(operand for op in (*ops.values(), last) for operand in op.operands)
        closed = all(self._build.reads[v.name] == inside[v.name] for op in ops.values() for v in op.results)
        multiplies = any(op.name == "_grouped_mm" for op in ops.values())
        return self._made.get(name) if closed and multiplies else None

    def _of(self, op: Op) -> tuple[Ref, ...]:
        """The results of an op in the rows' own order; none if it has no sorted rows, or that is not known."""
        if op.target == "aten.index.Tensor":
            return self._gathered(op)
        if op.target == "aten._grouped_mm.default":
            return self._multiplied(op)
        build = self._build
        if self._made.keys().isdisjoint(op.operands) or rows_beside(op, build, self._made.keys()) != set():
            return ()
        return self._again(op)

    def _again(self, op: Op) -> tuple[Ref, ...]:
        """The results of an op that reads rows in their own order in the place of sorted ones."""
        read = op.map_refs(lambda name: self._made[name].name if name in self._made else name)
        return tuple(Ref(v.name) for v in self._build.emit_op(read, *(v.type for v in op.results)).results)

    def _gathered(self, op: Op) -> tuple[Ref, ...]:
        """Rows at the places in the order, or at those of what each row was repeated from, or what each looks up."""
        build, rows, indices = self._build, op["self"], op["indices"]
        assert isinstance(rows, Ref) and isinstance(indices, tuple)
        if len(indices) != 1 or not isinstance(indices[0], Ref):
            return ()
        if indices[0].name in self._made and rows.name not in self._made:
            return self._again(op)
        size = build.type_of(rows).shape[0]
        if indices[0] == self._order:
            return (rows,) if size == self._count else ()
        divided = build.producer(indices[0])
        times = _floor_divisor(divided)
        if divided is None or divided.args[0] != self._order or times is None:
            return ()
        if simplify_dim(size * times - self._count) != 0:
            return ()
        return (build.emit("aten.repeat_interleave.self_int", rows, times, 0, type_=op.result.type),)

    def _multiplied(self, op: Op) -> tuple[Ref, ...]:
        """A product of groups that are those of the ids."""
        build, rows, weight = self._build, op["self"], op["mat2"]
        assert isinstance(rows, Ref) and isinstance(weight, Ref)
        matrices = build.type_of(weight).shape
        if rows.name not in self._made or len(matrices) != 3 or op["bias"] is not None or op["out_dtype"] is not None:
            return ()
        if not are_below(self._ids, matrices[0], build) or not self._ends(op["offs"], matrices[0]):
            return ()
        swapped = build.emit("aten.transpose.int", weight, 1, 2)
        found = grouped(self._made[rows.name], swapped, self._ids, op.result.type, build)
        return (found,) if found else ()

    def _ends(self, ends: Arg, count: Arg) -> bool:
        """Whether numbers say where the rows of each id end, once they are sorted: how many there are up to each."""
        summed = self._build.producer(ends)
        counts = self._build.producer(summed.args[0]) if summed is not None and summed.name == "cumsum" else None
        if counts is None or counts.target != "aten.histc.default" or not isinstance(count, int):
            return False
        if (counts["bins"], counts["min"], counts["max"]) != (count, 0, count - 1) or not 2 <= count <= _MOST_BINS:
            return False
        counted = counts.args[0]
        while (cast := self._build.producer(counted)) is not None and cast.name == "_to_copy":
            if cast.result.type.dtype not in _HOLD_IDS:
                return False
            counted = cast.args[0]
        return counted == self._ids or (len(self._sort.results) == 2 and counted == Ref(self._sort.results[0].name))


def _floor_divisor(op: Op | None) -> int | None:
    """What an op divides by, rounding down."""
    if op is None or not (op.name == "floor_divide" or (op.name == "div" and op.get("rounding_mode") == "floor")):
        return None
    divisor = op.args[1]
    return divisor if type(divisor) is int and divisor > 0 else None


def rows_beside(op: Op, build: Builder, rows: Collection[str]) -> Collection[str] | None:
    """Of an op that computes each row (along dim 0) of its results from the same row of those operands that are
    `rows`, the other operands that have rows, from which it reads that same row; None for any other op."""
    dims = None if is_random(op) else op_dims(op, build.types)
    if dims is None:
        return None
    tensors = list(zip(op.operands, dims.operands, strict=True))
    named = {tensor[0] for name, tensor in tensors if name in rows and tensor}
    if len(named) != 1 or () in named or not all(tensor and tensor[0] in named for tensor in dims.results):
        return None
    (row,) = named
    beside = {name for name, tensor in tensors if name not in rows and tensor[:1] == (row,)}
    inner = [tensor[1:] if tensor[:1] == (row,) else tensor for tensor in (*dims.operands, *dims.results)]
    elsewhere = {name for tensor in inner for names in tensor for name in names}
    return beside if (elsewhere | dims.indivisible | dims.spmd).isdisjoint(row) else None
