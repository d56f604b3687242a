"""What the results of an op must look like, where that is cheap to say: functions for the entries of the table.

Arguments are counted in the schema's order. A function raises `ShapeError` for operands that do not fit together, and
any other `ValueError`, `LookupError` or `TypeError` where an op is not called the way it expects.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import sympy

from galvatron.ir import limits
from galvatron.ir.ops.arguments import Arg, Ref
from galvatron.ir.ops.call import Call
from galvatron.ir.ops.notation import Shape
from galvatron.ir.types import Dim, TensorType, simplify_dim

Shapes = tuple[Shape, ...]


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


def _axis(arg: Arg, rank: int) -> int:
    if type(arg) is not int:
        raise TypeError
    if not -rank <= arg < max(rank, 1):
        raise ShapeError(f"dimension {arg} of a tensor of rank {rank}")
    return arg % rank if rank else 0


def _axes(arg: Arg, rank: int) -> list[int]:
    return [_axis(a, rank) for a in (arg if isinstance(arg, tuple) else (arg,))]


def _sizes(arg: Arg) -> Shape:
    if not isinstance(arg, tuple):
        raise TypeError
    sizes: list[Dim] = []
    for size in arg:
        if type(size) is not int and not isinstance(size, sympy.Expr):
            raise TypeError
        sizes.append(size)  # type: ignore[arg-type]  # narrowed above
    return tuple(sizes)


def _numel(shape: Shape) -> Dim:
    return TensorType("bool", shape).numel


def _text(shape: Shape) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _without(shape: Shape, at: int) -> Shape:
    return shape[:at] + shape[at + 1 :]


def _contract(left: Dim, right: Dim) -> None:
    if not same(left, right):
        raise ShapeError(f"cannot contract a dimension of {left} with one of {right}")


def pointwise(call: Call) -> Shapes:
    return (broadcast(call.operand_shapes()),)


def like_first(call: Call) -> Shapes:
    return (call.tensor(0),)


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
    return (_sizes(call["size"]),)


def view(call: Call) -> Shapes:
    source, sizes = call.tensor(0), _sizes(call.argument(1))
    if -1 in sizes:
        known = _numel(tuple(s for s in sizes if s != -1))
        rest = simplify_dim(sympy.cancel(sympy.sympify(_numel(source)) / known))
        sizes = tuple(rest if s == -1 else s for s in sizes)
    if not same(_numel(source), _numel(sizes)):
        raise ShapeError(f"{_numel(source)} elements do not fill {_text(sizes)}")
    return (sizes,)


def expand(call: Call) -> Shapes:
    source, sizes = call.tensor(0), _sizes(call["size"])
    if len(sizes) < len(source):
        raise ShapeError(f"{_text(source)} does not expand to {_text(sizes)}")
    padded = (1,) * (len(sizes) - len(source)) + source
    target = tuple(old if size == -1 else size for old, size in zip(padded, sizes, strict=True))
    if any(not same(old, 1) and not same(old, new) for old, new in zip(padded, target, strict=True)):
        raise ShapeError(f"{_text(source)} does not expand to {_text(sizes)}")
    return (target,)


def permute(call: Call) -> Shapes:
    shape = call.tensor(0)
    order = _axes(call["dims"], len(shape))
    if sorted(order) != list(range(len(shape))):
        raise ShapeError(f"{order} is no order of {len(shape)} dimensions")
    return (tuple(shape[i] for i in order),)


def transpose(call: Call) -> Shapes:
    shape = list(call.tensor(0))
    first, second = _axis(call["dim0"], len(shape)), _axis(call["dim1"], len(shape))
    shape[first], shape[second] = shape[second], shape[first]
    return (tuple(shape),)


def in_reverse(call: Call) -> Shapes:
    return (call.tensor(0)[::-1],)


def unsqueeze(call: Call) -> Shapes:
    shape = call.tensor(0)
    at = _axis(call["dim"], len(shape) + 1)
    return ((*shape[:at], 1, *shape[at:]),)


def squeeze(call: Call) -> Shapes:
    shape = call.tensor(0)
    dropped = _axes(call["dim"], len(shape)) if "dim" in call.arguments else range(len(shape))
    return (tuple(d for i, d in enumerate(shape) if i not in dropped or not same(d, 1)),)


def pairs_as_complex(call: Call) -> Shapes:
    shape = call.tensor(0)
    if not shape or not same(shape[-1], 2):
        raise ShapeError(f"{_text(shape)} does not end in pairs of real numbers")
    return (shape[:-1],)


def complex_as_pairs(call: Call) -> Shapes:
    return ((*call.tensor(0), 2),)


def concatenate(call: Call) -> Shapes:
    shapes = [s for s in call.tensors(0) if s != (0,)]  # torch lets an empty vector join anything
    at = _axis(call["dim"], len(shapes[0]))
    for shape in shapes[1:]:
        if len(shape) != len(shapes[0]) or not same_shape(_without(shape, at), _without(shapes[0], at)):
            raise ShapeError(f"{_text(shapes[0])} and {_text(shape)} do not concatenate along {at}")
    total: Dim = 0
    for shape in shapes:
        total = total + shape[at]
    return ((*shapes[0][:at], simplify_dim(total), *shapes[0][at + 1 :]),)


def stack(call: Call) -> Shapes:
    shapes = call.tensors(0)
    if any(not same_shape(s, shapes[0]) for s in shapes):
        raise ShapeError("stacked tensors have different shapes")
    at = _axis(call["dim"], len(shapes[0]) + 1)
    return ((*shapes[0][:at], len(shapes), *shapes[0][at:]),)


def select(call: Call) -> Shapes:
    shape = call.tensor(0)
    return (_without(shape, _axis(call["dim"], len(shape))),)


def split(call: Call) -> Shapes:
    shape = call.tensor(0)
    at = _axis(call["dim"], len(shape))
    length, size = shape[at], call.argument(1)
    if isinstance(size, tuple):
        parts = _sizes(size)
        total: Dim = 0
        for part in parts:
            total = total + part
        if not same(total, length):
            raise ShapeError(f"pieces {_text(parts)} of a dimension of {length}")
    elif type(size) is int and isinstance(length, int):
        _require_few(-(-length // size) if size > 0 else 1)
        parts = tuple(min(size, length - start) for start in range(0, length, size))
    else:
        raise TypeError
    return tuple((*shape[:at], part, *shape[at + 1 :]) for part in parts)


def unbind(call: Call) -> Shapes:
    shape = call.tensor(0)
    at = _axis(call["dim"], len(shape))
    count = shape[at]
    if not isinstance(count, int):
        raise TypeError
    _require_few(count)
    return (_without(shape, at),) * count


def _require_few(pieces: int) -> None:
    if pieces > limits.LIST_ITEMS:
        raise ShapeError(f"{pieces} pieces; there may be {limits.LIST_ITEMS}")


def linear(call: Call) -> Shapes:
    x, weight = call.tensor(0), call.tensor(1)
    _contract(x[-1], weight[-1])
    if isinstance(call["bias"], Ref) and not same_shape(call.shape("bias"), weight[:-1]):
        raise ShapeError(f"a bias {_text(call.shape('bias'))} beside a weight {_text(weight)}")
    return ((*x[:-1], *weight[:-1]),)


def grouped_linear(call: Call) -> Shapes:
    (rows, inner), (_, columns, contracted), (ids,) = (call.tensor(i) for i in range(3))
    _contract(inner, contracted)
    if not same(rows, ids):
        raise ShapeError(f"{ids} ids for {rows} rows")
    return ((rows, columns),)


def matmul(call: Call) -> Shapes:
    a, b = call.tensor(0), call.tensor(1)
    if not a or not b:
        raise ShapeError("a matrix product of a scalar")
    _contract(a[-1], b[-2:][0])
    batch = broadcast([a[:-2], b[:-2]])
    return ((*batch, *(a[-2:-1] if len(a) > 1 else ()), *(b[-1:] if len(b) > 1 else ())),)


def addmm(call: Call) -> Shapes:
    added, a, b = call.tensor(0), call.tensor(1), call.tensor(2)
    _contract(a[1], b[0])
    shape: Shape = (a[0], b[1])
    if not same_shape(broadcast([added, shape]), shape):
        raise ShapeError(f"{_text(added)} does not broadcast to {_text(shape)}")
    return (shape,)


def attention(call: Call) -> Shapes:
    q, k, v = (call.tensor(i) for i in range(3))
    _contract(q[-1], k[-1])
    _contract(k[-2], v[-2])
    return ((*q[:-1], v[-1]),)


def embedding(call: Call) -> Shapes:
    return ((*call.tensor(1), *call.tensor(0)[1:]),)


def normalised(*affine: str) -> Callable[[Call], Shapes]:
    """Like the first operand, of whose trailing dimensions an argument says the sizes, and which others have alone."""

    def shapes(call: Call) -> Shapes:
        whole, inner = call.tensor(0), _sizes(call["normalized_shape"])
        for name, shape in (("normalized_shape", inner), *((n, call.shape(n)) for n in affine if call.has(n))):
            if not inner or not same_shape(shape, whole[len(whole) - len(inner) :]):
                raise ShapeError(f"{name} {_text(shape)} is not what the last dimensions of {_text(whole)} are")
        return (whole,)

    return shapes


def reduced(call: Call) -> Shapes:
    shape = call.tensor(0)
    dims = call.arguments.get("dim")
    along = _axes(dims, len(shape)) if dims not in (None, ()) else list(range(len(shape)))
    if len(set(along)) < len(along):
        raise ShapeError(f"a dimension of {_text(shape)} is named twice")
    if call.arguments.get("keepdim"):
        return (tuple(1 if i in along else d for i, d in enumerate(shape)),)
    return (tuple(d for i, d in enumerate(shape) if i not in along),)


def loss_of_classes(call: Call) -> Shapes:
    """A loss that is reduced, of scores of classes beside the right one of them, or a probability of each."""
    if call["reduction"] not in (1, 2):
        raise ValueError
    scores, target = call.tensor(0), call.tensor(1)
    if not scores:
        raise ValueError
    at = min(1, len(scores) - 1)
    probabilities = call.types[call.op.operands[1]].is_floating
    if not same_shape(target, scores if probabilities else _without(scores, at)):
        raise ShapeError(f"targets {_text(target)} for scores {_text(scores)}")
    if call.has("weight") and not same_shape(call.shape("weight"), (scores[at],)):
        raise ShapeError(f"weights {_text(call.shape('weight'))} for {scores[at]} classes")
    smoothing = call["label_smoothing"]
    if isinstance(smoothing, int | float) and not 0 <= smoothing <= 1:
        raise ShapeError(f"a smoothing of {smoothing}")
    return ((),)
