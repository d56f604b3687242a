"""What the results of an op must look like, where that is cheap to say: functions for the entries of the table.

Arguments are counted in the schema's order. A function raises `ShapeError` for operands that do not fit together, and
any other `ValueError`, `LookupError` or `TypeError` where an op is not called the way it expects: then torch is asked.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import sympy

from galvatron.ir import limits
from galvatron.ir.ops.arguments import Ref
from galvatron.ir.ops.call import Call
from galvatron.ir.ops.notation import Shape
from galvatron.ir.ops.sizes import (
    ShapeError,
    axes_of,
    axis_of,
    broadcast,
    contract,
    counted,
    elements,
    expect,
    same,
    same_shape,
    sizes_of,
    told,
    whole_number,
    without,
)
from galvatron.ir.types import Dim, TensorType, exact_quotient, simplify_dim

Shapes = tuple[Shape, ...]


def pointwise(call: Call) -> Shapes:
    return (broadcast(call.operand_shapes()),)


def added(call: Call) -> Shapes:
    """The common shape of terms, of which one may be multiplied."""
    expect(type(call.arguments.get("alpha", 1)) is not bool)
    return pointwise(call)


def subtracted(call: Call) -> Shapes:
    """The common shape of numbers of which none is boolean."""
    terms = (call["self"], call["other"])
    expect(not any((call.types[t.name].dtype == "bool") if isinstance(t, Ref) else type(t) is bool for t in terms))
    return added(call)


def like_first(call: Call) -> Shapes:
    return (call.tensor(0),)


def chosen(call: Call) -> Shapes:
    """The common shape of a mask and of what it chooses between."""
    expect(any(call.has(name) and call.type(name).dtype == "bool" for name in ("condition", "mask")))
    if call.has("value"):
        expect(call.type("value") == TensorType(call.type("self").dtype, ()))
    return pointwise(call)


def clamped(call: Call) -> Shapes:
    """The common shape of what is cut off and of where, at one end at least."""
    expect(call["min"] is not None or call["max"] is not None)
    return pointwise(call)


def in_one(call: Call) -> Shapes:
    """Like the first operand, along one dimension of which an op works."""
    shape = call.tensor(0)
    axis_of(call["dim"], len(shape))
    return (shape,)


def bent(call: Call) -> Shapes:
    """Like the first operand, of each element of which a curve is computed, exactly or as an argument says."""
    if (how := call["approximate"]) not in ("none", "tanh"):
        raise ShapeError(f"an approximation by {how!r}")
    return like_first(call)


def dropped(call: Call) -> Shapes:
    """Like the first operand, of which each element is dropped with a probability."""
    share = call["p"]
    if isinstance(share, int | float) and not 0 <= share <= 1:
        raise ShapeError(f"a probability of {share}")
    return like_first(call)


def filled(call: Call) -> Shapes:
    return (counted(call["size"]),)


def counted_up(call: Call) -> Shapes:
    """The numbers from a first one, or 0, to before the last, one after the other."""
    start, end = whole_number(call.arguments.get("start", 0)), call["end"]
    expect(whole_number(call.arguments.get("step", 1)) == 1)
    if isinstance(end, sympy.Expr):
        expect(bool(end.is_integer) and start == 0)
        return ((end,),)
    expect(start <= whole_number(end))
    return ((whole_number(end) - start,),)


def view(call: Call) -> Shapes:
    source, sizes = call.tensor(0), sizes_of(call.argument(1))
    if -1 in sizes:
        rest = exact_quotient(elements(source), elements(tuple(s for s in sizes if s != -1)))
        expect(rest is not None and sizes.count(-1) == 1)
        sizes = tuple(rest if s == -1 else s for s in sizes if rest is not None)
    counted(sizes)
    if not same(elements(source), elements(sizes)):
        raise ShapeError(f"{elements(source)} elements do not fill {told(sizes)}")
    return (sizes,)


def expand(call: Call) -> Shapes:
    source, sizes = call.tensor(0), sizes_of(call["size"])
    if len(sizes) < len(source):
        raise ShapeError(f"{told(source)} does not expand to {told(sizes)}")
    padded = (1,) * (len(sizes) - len(source)) + source
    target = tuple(old if size == -1 else size for old, size in zip(padded, sizes, strict=True))
    expect(-1 not in sizes[: len(sizes) - len(source)])
    counted(target)
    if any(not same(old, 1) and not same(old, new) for old, new in zip(padded, target, strict=True)):
        raise ShapeError(f"{told(source)} does not expand to {told(sizes)}")
    return (target,)


def permute(call: Call) -> Shapes:
    shape = call.tensor(0)
    order = axes_of(call["dims"], len(shape))
    if sorted(order) != list(range(len(shape))):
        raise ShapeError(f"{order} is no order of {len(shape)} dimensions")
    return (tuple(shape[i] for i in order),)


def transpose(call: Call) -> Shapes:
    shape = list(call.tensor(0))
    first, second = axis_of(call["dim0"], len(shape)), axis_of(call["dim1"], len(shape))
    shape[first], shape[second] = shape[second], shape[first]
    return (tuple(shape),)


def in_reverse(call: Call) -> Shapes:
    shape = call.tensor(0)
    expect(len(shape) <= 2)
    return (shape[::-1],)


def unsqueeze(call: Call) -> Shapes:
    shape = call.tensor(0)
    at = axis_of(call["dim"], len(shape) + 1)
    return ((*shape[:at], 1, *shape[at:]),)


def squeeze(call: Call) -> Shapes:
    shape = call.tensor(0)
    dropped = axes_of(call["dim"], len(shape)) if "dim" in call.arguments else range(len(shape))
    return (tuple(d for i, d in enumerate(shape) if i not in dropped or not same(d, 1)),)


def pairs_as_complex(call: Call) -> Shapes:
    shape = call.tensor(0)
    if not shape or not same(shape[-1], 2):
        raise ShapeError(f"{told(shape)} does not end in pairs of real numbers")
    return (shape[:-1],)


def complex_as_pairs(call: Call) -> Shapes:
    return ((*call.tensor(0), 2),)


def concatenate(call: Call) -> Shapes:
    shapes = [s for s in call.tensors(0) if s != (0,)]  # torch lets an empty vector join anything
    at = axis_of(call["dim"], len(shapes[0]))
    for shape in shapes[1:]:
        if len(shape) != len(shapes[0]) or not same_shape(without(shape, at), without(shapes[0], at)):
            raise ShapeError(f"{told(shapes[0])} and {told(shape)} do not concatenate along {at}")
    total: Dim = 0
    for shape in shapes:
        total = total + shape[at]
    return ((*shapes[0][:at], simplify_dim(total), *shapes[0][at + 1 :]),)


def stack(call: Call) -> Shapes:
    shapes = call.tensors(0)
    if any(not same_shape(s, shapes[0]) for s in shapes):
        raise ShapeError("stacked tensors have different shapes")
    at = axis_of(call["dim"], len(shapes[0]) + 1)
    return ((*shapes[0][:at], len(shapes), *shapes[0][at:]),)


def padded(call: Call) -> Shapes:
    """More elements at both ends of the last dimensions, all of one value."""
    shape, widths, type_ = list(call.tensor(0)), call["pad"], call.type("self")
    value = call["value"] or 0
    if not isinstance(value, int | float):
        raise ValueError
    expect(isinstance(widths, tuple) and len(widths) % 2 == 0 and len(widths) <= 2 * len(shape))
    expect(call.arguments.get("mode", "constant") == "constant")
    expect(type_.is_floating or (type_.dtype in ("i64", "i32") and value % 1 == 0 and abs(value) < 2**31))
    for at, width in enumerate(counted(widths)):
        shape[-1 - at // 2] = simplify_dim(shape[-1 - at // 2] + width)
    return (tuple(shape),)


def sliced(call: Call) -> Shapes:
    """Every so many elements between two places, which are numbers, or all from a place on."""
    shape = list(call.tensor(0))
    at, first, last, step = axis_of(call["dim"], len(shape)), call["start"], call["end"], call["step"]
    length = shape[at]
    if isinstance(length, int):
        expect(whole_number(step) > 0)
        start, stop = (None if place is None else whole_number(place) for place in (first, last))
        start, stop, every = slice(start, stop, whole_number(step)).indices(length)
        shape[at] = max(0, -((start - stop) // every))
    else:
        expect(first in (None, 0) and (last is None or last == sys.maxsize or last == length) and step == 1)
    return (tuple(shape),)


def select(call: Call) -> Shapes:
    shape, index = call.tensor(0), call["index"]
    at = axis_of(call["dim"], len(shape))
    length = shape[at]
    if isinstance(length, int) and isinstance(index, int) and not -length <= index < length:
        raise ShapeError(f"index {index} of a dimension of {length}")
    expect(isinstance(index, int) and (isinstance(length, int) or index in (0, -1)))
    return (without(shape, at),)


def split(call: Call) -> Shapes:
    shape = call.tensor(0)
    at = axis_of(call["dim"], len(shape))
    length, size = shape[at], call.argument(1)
    if isinstance(size, tuple):
        parts = counted(size)
        total: Dim = 0
        for part in parts:
            total = total + part
        if not same(total, length):
            raise ShapeError(f"pieces {told(parts)} of a dimension of {length}")
    elif type(size) is int and isinstance(length, int):
        expect(size > 0 and length > 0)
        _require_few(-(-length // size))
        parts = tuple(min(size, length - start) for start in range(0, length, size))
    else:
        raise TypeError
    return tuple((*shape[:at], part, *shape[at + 1 :]) for part in parts)


def unbind(call: Call) -> Shapes:
    shape = call.tensor(0)
    at = axis_of(call["dim"], len(shape))
    count = shape[at]
    if not isinstance(count, int):
        raise TypeError
    _require_few(count)
    return (without(shape, at),) * count


def _require_few(pieces: int) -> None:
    if pieces > limits.LIST_ITEMS:
        raise ShapeError(f"{pieces} pieces; there may be {limits.LIST_ITEMS}")


def linear(call: Call) -> Shapes:
    x, weight = call.tensor(0), call.tensor(1)
    expect(len(weight) == 2)
    contract(x[-1], weight[-1])
    if call.has("bias"):
        expect(same_shape(call.shape("bias"), weight[:-1]))
    return ((*x[:-1], *weight[:-1]),)


def grouped_linear(call: Call) -> Shapes:
    (rows, inner), (_, columns, contracted), (ids,) = (call.tensor(i) for i in range(3))
    contract(inner, contracted)
    expect(call.type("rows").dtype == call.type("weight").dtype and call.type("ids").dtype == "i64")
    if not same(rows, ids):
        raise ShapeError(f"{ids} ids for {rows} rows")
    return ((rows, columns),)


def matmul(call: Call) -> Shapes:
    a, b = call.tensor(0), call.tensor(1)
    if not a or not b:
        raise ShapeError("a matrix product of a scalar")
    contract(a[-1], b[-2:][0])
    batch = broadcast([a[:-2], b[:-2]])
    return ((*batch, *(a[-2:-1] if len(a) > 1 else ()), *(b[-1:] if len(b) > 1 else ())),)


def matrices(rank: int) -> Callable[[Call], Shapes]:
    """The product of two matrices, or of two batches of as many."""

    def shapes(call: Call) -> Shapes:
        a, b = call.tensor(0), call.tensor(1)
        expect(len(a) == len(b) == rank and same_shape(a[:-2], b[:-2]))
        return matmul(call)

    return shapes


def addmm(call: Call) -> Shapes:
    added, a, b = call.tensor(0), call.tensor(1), call.tensor(2)
    expect(len(a) == len(b) == 2)
    contract(a[1], b[0])
    shape: Shape = (a[0], b[1])
    if not same_shape(broadcast([added, shape]), shape):
        raise ShapeError(f"{told(added)} does not broadcast to {told(shape)}")
    return (shape,)


def attention(call: Call) -> Shapes:
    q, k, v = (call.tensor(i) for i in range(3))
    expect(len(q) == len(k) == 4 and same_shape(k[:2], v[:-2]) and same(q[0], k[0]))
    expect(same(q[1], k[1]) or (call["enable_gqa"] is True and exact_quotient(q[1], k[1]) is not None))
    contract(q[-1], k[-1])
    contract(k[-2], v[-2])
    share, of_scores, dtype = call["dropout_p"], (*q[:-1], k[-2]), call.type("query").dtype
    expect(isinstance(share, int | float) and 0 <= share <= 1 and call.type("query").is_floating)
    expect(call.type("key").dtype == call.type("value").dtype == dtype)
    if call.has("attn_mask"):
        mask = call.type("attn_mask")
        expect(mask.dtype in ("bool", dtype) and not call["is_causal"])
        sizes = zip(reversed(mask.shape), reversed(of_scores), strict=False)
        expect(2 <= len(mask.shape) <= 4 and all(same(given, 1) or same(given, size) for given, size in sizes))
    return ((*q[:-1], v[-1]),)


def embedding(call: Call) -> Shapes:
    """Rows of a matrix, at indices."""
    expect(len(call.tensor(0)) == 2 and call.tensor(0)[0] != 0 and call.type("indices").dtype in ("i64", "i32"))
    return ((*call.tensor(1), *call.tensor(0)[1:]),)


def normalised(*affine: str) -> Callable[[Call], Shapes]:
    """Like the first operand, of whose trailing dimensions an argument says the sizes, and which others have alone."""

    def shapes(call: Call) -> Shapes:
        whole, inner = call.tensor(0), sizes_of(call["normalized_shape"])
        for name, shape in (("normalized_shape", inner), *((n, call.shape(n)) for n in affine if call.has(n))):
            if not inner or not same_shape(shape, whole[len(whole) - len(inner) :]):
                raise ShapeError(f"{name} {told(shape)} is not what the last dimensions of {told(whole)} are")
        return (whole,)

    return shapes


def reduced(call: Call) -> Shapes:
    shape = call.tensor(0)
    dims = call.arguments.get("dim")
    along = axes_of(dims, len(shape)) if dims not in (None, ()) else list(range(len(shape)))
    if call.arguments.get("keepdim"):
        return (tuple(1 if i in along else d for i, d in enumerate(shape)),)
    return (tuple(d for i, d in enumerate(shape) if i not in along),)


def judged(call: Call) -> Shapes:
    """Like `reduced`, along some dimensions if a list of them is given."""
    expect(call.arguments.get("dim") != ())
    return reduced(call)


def loss_of_classes(call: Call) -> Shapes:
    """A loss that is reduced, of scores of classes beside the right one of them, or a probability of each."""
    expect(call["reduction"] in (1, 2))
    scores, target = call.tensor(0), call.tensor(1)
    expect(len(scores) > 1)
    probabilities = call.type("target").is_floating
    of_one_type = [call.type(name).dtype for name in ("target",) * probabilities + ("weight",) * call.has("weight")]
    expect(call.type("self").is_floating and set(of_one_type) <= {call.type("self").dtype})
    expect(call.type("target").dtype == "i64" or (probabilities and call["ignore_index"] == -100))
    if not same_shape(target, scores if probabilities else without(scores, 1)):
        raise ShapeError(f"targets {told(target)} for scores {told(scores)}")
    if call.has("weight") and not same_shape(call.shape("weight"), (scores[1],)):
        raise ShapeError(f"weights {told(call.shape('weight'))} for {scores[1]} classes")
    smoothing = call["label_smoothing"]
    expect(isinstance(smoothing, int | float) and 0 <= smoothing <= 1)
    return ((),)
