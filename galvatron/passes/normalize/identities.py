"""Ops that say nothing, and ops that say the same as another one."""

from __future__ import annotations

from dataclasses import replace

from galvatron.ir.graph import Arg, Const, Op, Ref
from galvatron.passes.normalize.rewriter import Builder, Rewrite


def identity(op: Op, build: Builder) -> Ref:
    """The op copies its input: `clone`, `alias`, `contiguous`, … A value has no memory of its own."""
    (first, *_) = op.args
    assert isinstance(first, Ref)
    return first


def identity_if_same_type(op: Op, build: Builder) -> Ref | None:
    """A cast, expand, reshape, slice or permutation that changes neither dtype nor shape."""
    return identity(op, build) if build.type_of(op.args[0]) == op.result.type else None


def identity_permutation(op: Op, build: Builder) -> Ref | None:
    """`permute` and `transpose` that leave every dim where it is."""
    dims = op.get("dims")
    moved = op["dim0"] != op["dim1"] if dims is None else dims != tuple(range(len(op.result.type.shape)))
    return None if moved else identity(op, build)


def full_slice(op: Op, build: Builder) -> Ref | None:
    """A slice that takes everything."""
    return identity_if_same_type(op, build) if op["step"] == 1 else None


def neutral_element(neutral: float) -> Rewrite:
    """The rule that drops an operation with its neutral element: `x + 0`, `x * 1.0`, …"""

    def rule(op: Op, build: Builder) -> Ref | None:
        left, right = op.args[:2]
        if isinstance(right, (int, float)) and not isinstance(right, bool) and right == neutral:
            return identity_if_same_type(op, build) if isinstance(left, Ref) else None
        return None

    return rule


def conjunction_with_true(op: Op, build: Builder) -> Ref | None:
    """`x & True`, where True is a constant tensor."""
    for kept, other in (op.args[:2], op.args[1::-1]):
        producer = build.producer(other)
        is_true = producer is not None and producer.target == "aten.full.default" and producer.args[1] is True
        if is_true and isinstance(kept, Ref) and build.type_of(kept) == op.result.type:
            return kept
    return None


def cat_with_nothing(op: Op, build: Builder) -> Op | Ref | None:
    """`cat` of one tensor, or of tensors some of which are empty, as an unused key-value cache is."""
    parts, dim = op.args
    assert isinstance(parts, tuple)
    kept = tuple(part for part in parts if build.type_of(part).numel != 0)
    if len(kept) == 1 and isinstance(kept[0], Ref):
        return kept[0]
    return replace(op, args=(kept, dim)) if kept and len(kept) < len(parts) else None


def pointless_detach(op: Op, build: Builder) -> Ref | None:
    """`detach` of a value that no gradient flows through."""
    (value,) = op.operands
    return None if value in build.differentiable else Ref(value)


def inactive_dropout(op: Op, build: Builder) -> Ref | tuple[Ref, ...] | None:
    """Dropout in eval mode or with probability 0."""
    if op.get("p") != 0 and op["train"] is not False:
        return None
    kept = identity(op, build)
    if len(op.results) == 1:
        return kept
    mask = op.results[1].type
    return kept, build.emit("aten.full.default", (mask.shape, True), mask, dtype=Const("dtype", mask.dtype))


def dropout_without_mask(op: Op, build: Builder) -> Op | None:
    """`native_dropout` whose mask nobody reads is `dropout`."""
    if op.results[1].name in build.used:
        return None
    return Op("aten.dropout.default", (op["input"], op["p"], True), (), op.results[:1], op.source)


def batch_norm_without_saved_statistics(op: Op, build: Builder) -> Op | None:
    """Batch norm with given statistics, which saves none: it has one result, of the shape of its input."""
    if any(saved.name in build.used for saved in op.results[1:]):
        return None
    *operands, momentum, eps = op.arguments.values()
    args = (*operands, False, momentum, eps, False)
    return Op("aten.batch_norm.default", args, (), op.results[:1], op.source)


def renamed_to(target: str) -> Rewrite:
    """The rule for another name of the same op."""
    return lambda op, build: replace(op, target=target)


def reshaped(op: Op, build: Builder) -> Op:
    """Every view is a `reshape`: values have no strides, and a sharded program need not have those of the model."""
    return replace(op, target="aten.reshape.default", args=(op.args[0], op.result.type.shape), kwargs=())


def expanded(op: Op, build: Builder) -> Op:
    """`expand_as` is `expand`."""
    return replace(op, target="aten.expand.default", args=(op.args[0], op.result.type.shape), kwargs=())


def broadcast(op: Op, build: Builder) -> tuple[Ref, ...]:
    """`broadcast_tensors` is an `expand` of each operand that needs one."""
    return tuple(_expand(Ref(name), value.type, build) for name, value in zip(op.operands, op.results, strict=True))


def _expand(ref: Ref, type_, build: Builder) -> Ref:
    return ref if build.type_of(ref) == type_ else build.emit("aten.expand.default", (ref, type_.shape), type_)


def permuted(op: Op, build: Builder) -> Op:
    """`t`, `mT`, `movedim` and their like as `permute`."""
    rank = len(op.result.type.shape)
    order = list(range(rank))
    if op.name == "movedim":
        source, destination = (_as_tuple(op[k]) for k in ("source", "destination"))
        order = [d for d in order if d not in source]
        for position, dim in sorted(zip(destination, source, strict=True)):
            order.insert(position, dim)
    elif op.name == "numpy_T":
        order.reverse()
    elif rank >= 2:
        order[-2:] = order[-1], order[-2]
    return replace(op, target="aten.permute.default", args=(op.args[0], tuple(order)), kwargs=())


def _as_tuple(arg: Arg) -> tuple:
    return arg if isinstance(arg, tuple) else (arg,)


def chunks_as_split(op: Op, build: Builder) -> Op:
    """`chunk` as `split` into pieces of the size of the first."""
    dim = op["dim"]
    assert isinstance(dim, int)
    return replace(op, target="aten.split.Tensor", args=(op.args[0], op.results[0].type.shape[dim], dim), kwargs=())


def narrowed(op: Op, build: Builder) -> Op:
    """`narrow` as `slice`."""
    dim, start, length = op.args[1:4]
    return replace(op, target="aten.slice.Tensor", args=(op.args[0], dim, start, start + length), kwargs=())  # type: ignore[operator]  # sizes


def filled_with(value: float | None = None) -> Rewrite:
    """The rule that writes the creation of a constant tensor as `full`; without a value the op names its own."""

    def rule(op: Op, build: Builder) -> Op:
        type_ = op.result.type
        fill = op.arguments.get("fill_value", op.get("s")) if value is None else value
        fill = bool(fill) if type_.dtype == "bool" else fill
        kwargs = (("dtype", Const("dtype", type_.dtype)),)
        return replace(op, target="aten.full.default", args=(type_.shape, fill), kwargs=kwargs)

    return rule


def explicit_dims(op: Op, build: Builder) -> Op | None:
    """A `sum` over all dims, written as none, names them."""
    if op.get("dim") not in (None, ()):
        return None
    dims = tuple(range(len(build.type_of(op.args[0]).shape)))
    kept = () if op["dtype"] is None else (("dtype", op["dtype"]),)
    return replace(op, target="aten.sum.dim_IntList", args=(op.args[0], dims, *op.args[2:]), kwargs=kept)
