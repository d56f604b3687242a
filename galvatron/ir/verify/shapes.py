"""What the results of an op must look like, where that is cheap to say. Ops outside the table are not checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import sympy

from galvatron.ir.graph import Arg, Const, Op, Ref
from galvatron.ir.random import without_site
from galvatron.ir.types import Dim, TensorType, simplify_dim

Shape = tuple[Dim, ...]
Lookup = Callable[[Arg], TensorType]


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


def expected_shapes(op: Op, types: Mapping[str, TensorType]) -> tuple[Shape, ...] | None:
    """The result shapes that an op must have, one per result; None where the table does not say.

    Raises:
        ShapeError: the operands do not fit together.
    """
    op = without_site(op)
    rule = SHAPES.get(op.name)
    if rule is None or op.namespace != "aten":
        return None

    def lookup(arg: Arg) -> TensorType:
        if not isinstance(arg, Ref):
            raise _Unknown
        return types[arg.name]

    try:
        return rule(op, lookup)
    except ShapeError:
        raise
    except (_Unknown, IndexError, TypeError, AttributeError, ValueError):
        return None  # not written the way the table expects: an unusual overload


def expected_dtype(op: Op, types: Mapping[str, TensorType]) -> str | None:
    """The element type that every result of an op must have; None where the table does not say."""
    op = without_site(op)
    if op.namespace != "aten":
        return None
    if isinstance(dtype := op.kwarg("dtype"), Const):
        return dtype.name
    if op.name in _COMPARISONS.split():
        return "bool"
    if op.name in _KEEPS_DTYPE.split() and op.args and isinstance(op.args[0], Ref):
        return types[op.args[0].name].dtype
    return None


class _Unknown(Exception):
    """The rule needs something that this op does not have."""


def _axis(arg: Arg, rank: int) -> int:
    if type(arg) is not int:
        raise _Unknown
    if not -rank <= arg < max(rank, 1):
        raise ShapeError(f"dimension {arg} of a tensor of rank {rank}")
    return arg % rank if rank else 0


def _axes(arg: Arg, rank: int) -> list[int]:
    return [_axis(a, rank) for a in (arg if isinstance(arg, tuple) else (arg,))]


def _argument(op: Op, index: int, name: str, default: Arg = None) -> Arg:
    return op.args[index] if len(op.args) > index else op.kwarg(name, default)


def _sizes(arg: Arg) -> Shape:
    if not isinstance(arg, tuple):
        raise _Unknown
    sizes: list[Dim] = []
    for size in arg:
        if type(size) is not int and not isinstance(size, sympy.Expr):
            raise _Unknown
        sizes.append(size)  # type: ignore[arg-type]  # narrowed above
    return tuple(sizes)


def _numel(shape: Shape) -> Dim:
    return TensorType("bool", shape).numel


def _pointwise(op: Op, of: Lookup) -> tuple[Shape, ...]:
    return (broadcast([of(a).shape for a in op.args if isinstance(a, Ref)]),)


def _like_first(op: Op, of: Lookup) -> tuple[Shape, ...]:
    return (of(op.args[0]).shape,)


def _view(op: Op, of: Lookup) -> tuple[Shape, ...]:
    source, sizes = of(op.args[0]).shape, _sizes(op.args[1])
    if -1 in sizes:
        known = _numel(tuple(s for s in sizes if s != -1))
        rest = simplify_dim(sympy.cancel(sympy.sympify(_numel(source)) / known))
        sizes = tuple(rest if s == -1 else s for s in sizes)
    if not same(_numel(source), _numel(sizes)):
        raise ShapeError(f"{_numel(source)} elements do not fill {_text(sizes)}")
    return (sizes,)


def _expand(op: Op, of: Lookup) -> tuple[Shape, ...]:
    source, sizes = of(op.args[0]).shape, _sizes(op.args[1])
    if len(sizes) < len(source):
        raise ShapeError(f"{_text(source)} does not expand to {_text(sizes)}")
    padded = (1,) * (len(sizes) - len(source)) + source
    target = tuple(old if size == -1 else size for old, size in zip(padded, sizes, strict=True))
    if any(not same(old, 1) and not same(old, new) for old, new in zip(padded, target, strict=True)):
        raise ShapeError(f"{_text(source)} does not expand to {_text(sizes)}")
    return (target,)


def _permute(op: Op, of: Lookup) -> tuple[Shape, ...]:
    shape = of(op.args[0]).shape
    order = _axes(op.args[1], len(shape))
    if sorted(order) != list(range(len(shape))):
        raise ShapeError(f"{order} is no order of {len(shape)} dimensions")
    return (tuple(shape[i] for i in order),)


def _transpose(op: Op, of: Lookup) -> tuple[Shape, ...]:
    shape = list(of(op.args[0]).shape)
    first, second = _axis(op.args[1], len(shape)), _axis(op.args[2], len(shape))
    shape[first], shape[second] = shape[second], shape[first]
    return (tuple(shape),)


def _t(op: Op, of: Lookup) -> tuple[Shape, ...]:
    return (of(op.args[0]).shape[::-1],)


def _unsqueeze(op: Op, of: Lookup) -> tuple[Shape, ...]:
    shape = of(op.args[0]).shape
    at = _axis(op.args[1], len(shape) + 1)
    return ((*shape[:at], 1, *shape[at:]),)


def _squeeze(op: Op, of: Lookup) -> tuple[Shape, ...]:
    shape = of(op.args[0]).shape
    dropped = _axes(op.args[1], len(shape)) if len(op.args) > 1 else range(len(shape))
    return (tuple(d for i, d in enumerate(shape) if i not in dropped or not same(d, 1)),)


def _concatenate(op: Op, of: Lookup) -> tuple[Shape, ...]:
    parts = op.args[0]
    if not isinstance(parts, tuple):
        raise _Unknown
    shapes = [s for s in (of(a).shape for a in parts) if s != (0,)]  # torch lets an empty vector join anything
    at = _axis(_argument(op, 1, "dim", 0), len(shapes[0]))
    for shape in shapes[1:]:
        if len(shape) != len(shapes[0]) or not same_shape(_without(shape, at), _without(shapes[0], at)):
            raise ShapeError(f"{_text(shapes[0])} and {_text(shape)} do not concatenate along {at}")
    total: Dim = 0
    for shape in shapes:
        total = total + shape[at]
    return ((*shapes[0][:at], simplify_dim(total), *shapes[0][at + 1 :]),)


def _stack(op: Op, of: Lookup) -> tuple[Shape, ...]:
    parts = op.args[0]
    if not isinstance(parts, tuple):
        raise _Unknown
    shapes = [of(a).shape for a in parts]
    if any(not same_shape(s, shapes[0]) for s in shapes):
        raise ShapeError("stacked tensors have different shapes")
    at = _axis(_argument(op, 1, "dim", 0), len(shapes[0]) + 1)
    return ((*shapes[0][:at], len(shapes), *shapes[0][at:]),)


def _without(shape: Shape, at: int) -> Shape:
    return shape[:at] + shape[at + 1 :]


def _contract(left: Dim, right: Dim) -> None:
    if not same(left, right):
        raise ShapeError(f"cannot contract a dimension of {left} with one of {right}")


def _linear(op: Op, of: Lookup) -> tuple[Shape, ...]:
    x, weight = of(op.args[0]).shape, of(op.args[1]).shape
    _contract(x[-1], weight[-1])
    bias = _argument(op, 2, "bias")
    if isinstance(bias, Ref) and not same_shape(of(bias).shape, weight[:-1]):
        raise ShapeError(f"a bias {_text(of(bias).shape)} beside a weight {_text(weight)}")
    return ((*x[:-1], *weight[:-1]),)


def _matmul(op: Op, of: Lookup) -> tuple[Shape, ...]:
    a, b = of(op.args[0]).shape, of(op.args[1]).shape
    if not a or not b:
        raise ShapeError("a matrix product of a scalar")
    _contract(a[-1], b[-2:][0])
    batch = broadcast([a[:-2], b[:-2]])
    return ((*batch, *(a[-2:-1] if len(a) > 1 else ()), *(b[-1:] if len(b) > 1 else ())),)


def _addmm(op: Op, of: Lookup) -> tuple[Shape, ...]:
    a, b = of(op.args[1]).shape, of(op.args[2]).shape
    _contract(a[1], b[0])
    shape: Shape = (a[0], b[1])
    if not same_shape(broadcast([of(op.args[0]).shape, shape]), shape):
        raise ShapeError(f"{_text(of(op.args[0]).shape)} does not broadcast to {_text(shape)}")
    return (shape,)


def _embedding(op: Op, of: Lookup) -> tuple[Shape, ...]:
    return ((*of(op.args[1]).shape, *of(op.args[0]).shape[1:]),)


def _attention(op: Op, of: Lookup) -> tuple[Shape, ...]:
    q, k, v = (of(op.args[i]).shape for i in range(3))
    _contract(q[-1], k[-1])
    _contract(k[-2], v[-2])
    return ((*q[:-1], v[-1]),)


def _reduction(op: Op, of: Lookup) -> tuple[Shape, ...]:
    shape = of(op.args[0]).shape
    if op.overload == "default" and len(op.args) < 2:
        return ((),)
    dims = _argument(op, 1, "dim")
    reduced = _axes(dims, len(shape)) if dims not in (None, ()) else list(range(len(shape)))
    if _argument(op, 2, "keepdim", False):
        return (tuple(1 if i in reduced else d for i, d in enumerate(shape)),)
    return (tuple(d for i, d in enumerate(shape) if i not in reduced),)


def _select(op: Op, of: Lookup) -> tuple[Shape, ...]:
    shape = of(op.args[0]).shape
    return (_without(shape, _axis(op.args[1], len(shape))),)


def _split(op: Op, of: Lookup) -> tuple[Shape, ...]:
    shape = of(op.args[0]).shape
    at = _axis(_argument(op, 2, "dim", 0), len(shape))
    length, size = shape[at], op.args[1]
    if isinstance(size, tuple):
        parts = _sizes(size)
        total: Dim = 0
        for part in parts:
            total = total + part
        if not same(total, length):
            raise ShapeError(f"pieces {_text(parts)} of a dimension of {length}")
    elif type(size) is int and isinstance(length, int):
        parts = tuple(min(size, length - start) for start in range(0, length, size))
    else:
        raise _Unknown
    return tuple((*shape[:at], part, *shape[at + 1 :]) for part in parts)


def _unbind(op: Op, of: Lookup) -> tuple[Shape, ...]:
    shape = of(op.args[0]).shape
    at = _axis(_argument(op, 1, "dim", 0), len(shape))
    count = shape[at]
    if not isinstance(count, int):
        raise _Unknown
    return (_without(shape, at),) * count


def _filled(op: Op, of: Lookup) -> tuple[Shape, ...]:
    return (_sizes(op.args[0]),)


def _loss(op: Op, of: Lookup) -> tuple[Shape, ...]:
    if _argument(op, 3, "reduction", 1) == 0:
        raise _Unknown
    return ((),)


def _complex_view(op: Op, of: Lookup) -> tuple[Shape, ...]:
    shape = of(op.args[0]).shape
    if not shape or not same(shape[-1], 2):
        raise ShapeError(f"{_text(shape)} does not end in pairs of real numbers")
    return (shape[:-1],)


def _real_view(op: Op, of: Lookup) -> tuple[Shape, ...]:
    return ((*of(op.args[0]).shape, 2),)


def _text(shape: Shape) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _table(rule: Callable[[Op, Lookup], tuple[Shape, ...]], names: str) -> dict[str, Callable]:
    return dict.fromkeys(names.split(), rule)


_COMPARISONS = """
    eq ne lt le gt ge logical_and logical_or logical_not logical_xor isnan isinf
"""

_KEEPS_DTYPE = """
    view reshape _unsafe_view expand permute transpose t unsqueeze squeeze select slice split split_with_sizes unbind
    clone linear matmul mm bmm addmm embedding neg
"""

_POINTWISE = """
    add sub rsub mul div pow neg abs sign exp log sqrt rsqrt reciprocal sin cos tan tanh sigmoid erf relu gelu silu mish
    softplus leaky_relu elu hardtanh where masked_fill clamp clamp_min clamp_max maximum minimum floor ceil round trunc
    floor_divide fmod remainder bitwise_and bitwise_or bitwise_xor bitwise_not __and__ __or__ __xor__ _to_copy to clone
    detach alias contiguous eq ne lt le gt ge logical_and logical_or logical_not logical_xor isnan isinf
    complex polar
"""

_LIKE_FIRST = """
    softmax _softmax log_softmax _log_softmax layer_norm rms_norm group_norm cumsum tril triu flip roll zeros_like
    real imag conj_physical slice_scatter select_scatter index_put index_add index_copy index_fill scatter scatter_add
    diagonal_scatter ones_like full_like empty_like lift_fresh_copy dropout rrelu bernoulli rand_like randn_like
    randint_like uniform normal_functional exponential cauchy geometric log_normal poisson
"""

SHAPES: dict[str, Callable[[Op, Lookup], tuple[Shape, ...]]] = {
    **_table(_pointwise, _POINTWISE),
    **_table(_like_first, _LIKE_FIRST),
    **_table(_view, "view reshape _unsafe_view"),
    **_table(_expand, "expand"),
    **_table(_permute, "permute"),
    **_table(_transpose, "transpose"),
    **_table(_t, "t"),
    **_table(_unsqueeze, "unsqueeze"),
    **_table(_squeeze, "squeeze"),
    **_table(_concatenate, "cat"),
    **_table(_stack, "stack"),
    **_table(_linear, "linear"),
    **_table(_matmul, "matmul mm bmm"),
    **_table(_addmm, "addmm"),
    **_table(_embedding, "embedding"),
    **_table(_attention, "scaled_dot_product_attention"),
    **_table(_reduction, "sum mean amax amin any all"),
    **_table(_select, "select"),
    **_table(_split, "split split_with_sizes"),
    **_table(_unbind, "unbind"),
    **_table(_complex_view, "view_as_complex"),
    **_table(_real_view, "view_as_real"),
    **_table(_filled, "full zeros ones empty rand randn"),
    **_table(_loss, "cross_entropy_loss"),
}
"""Result shapes by op name."""
