"""Means over the batch as a sum and a count.

Shards and micro-batches then add up: `sum / count` with the count of the whole batch is linear in the sum, whatever the
number of ignored tokens on each shard. Counts are numbers in `B`, or are computed from integer batch inputs alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import sympy

from galvatron.errors import PassError
from galvatron.ir.graph import Arg, Const, Op, Ref
from galvatron.ir.types import Dim, TensorType, simplify_dim
from galvatron.passes.normalize.arguments import with_arguments
from galvatron.passes.normalize.rewriter import Builder

_NONE, _MEAN, _SUM = 0, 1, 2
"""ATen's values of `reduction`."""


def batch_mean(op: Op, build: Builder) -> Op | None:
    """`mean` over dims that hold the batch, as `sum / (number of terms)`."""
    source = build.type_of(op.args[0])
    dims = op.get("dim")
    dims = tuple(range(len(source.shape))) if dims in (None, ()) else dims
    assert isinstance(dims, tuple)
    count = _product(source.shape[d] for d in dims if isinstance(d, int) and source.shape)  # a number has no dims
    if isinstance(count, int):
        return None
    wide = replace(op.result.type, dtype=_wide(op.result.type.dtype))
    dtype = {} if wide.dtype == source.dtype else {"dtype": Const("dtype", wide.dtype)}
    keepdim = (True,) if op.get("keepdim") else ()
    total = build.emit("aten.sum.dim_IntList", (op.args[0], dims, *keepdim), wide, **dtype)
    return _quotient(op, total, count, build)


def mean_of_elements(op: Op, build: Builder) -> Op | None:
    """A loss that averages over all elements of its broadcast operands: `mse_loss`, `l1_loss`, `kl_div`, …"""
    return _averaged(op, _product(_broadcast_shape(op, build)), build)


def mean_of_samples(op: Op, build: Builder) -> Op | None:
    """A loss with one term per sample, whose operands end in a feature dim: `triplet_margin_loss`, …"""
    return _averaged(op, _product(_broadcast_shape(op, build)[:-1]), build)


def mean_of_targets(op: Op, build: Builder) -> Op | None:
    """A loss that averages over the targets which are not `ignore_index`, weighted by class if there are weights."""
    if op["reduction"] != _MEAN:
        return None
    scores, target = (build.type_of(op[name]) for name in ("self", "target"))
    if target.is_floating:  # probabilities: one term per sample, whatever the class weights
        classes = scores.shape[1 if len(scores.shape) > 1 else 0]
        return _averaged(op, simplify_dim(sympy.sympify(scores.numel) / classes), build)
    op = _sum_of(op, build)
    total_type = build.type_of(op.args[0]).with_shape(())
    count_type = replace(total_type, dtype=_wide(total_type.dtype))
    weight = op["weight"]
    if weight is None:
        count = _count(op["target"], op["ignore_index"], count_type, build)
    else:
        count = _total_weight(weight, op["target"], op["ignore_index"], count_type, build)
    total = build.emit(op.target, op.args, total_type)
    return _quotient(op, total, count, build)


def loss_without_total_weight(op: Op, build: Builder) -> Op | None:
    """`nll_loss_forward` whose second result nobody reads is `nll_loss`."""
    if op.results[1].name in build.used:
        return None
    target = "aten.nll_loss_nd.default"
    return Op(target, op.args, (), op.results[:1], op.source)


def refuse_mean(op: Op, build: Builder) -> None:
    """A mean-reducing loss that cannot be written as sum and count here would be wrong on every shard: refuse it."""
    if op.get("reduction") == _MEAN:
        where = f"{op.source}: `{op.source.code}`: " if op.source else ""
        raise PassError(f"{where}{op.target} averages in a way that cannot be split over a batch: use reduction='sum'")


def _averaged(op: Op, count: Dim, build: Builder) -> Op | None:
    if op["reduction"] != _MEAN:
        return None
    op = _sum_of(op, build)
    total_type = build.type_of(op.args[0]).with_shape(())
    total = build.emit(op.target, op.args, total_type, **dict(op.kwargs))
    return _quotient(op, total, count, build)


def _sum_of(op: Op, build: Builder) -> Op:
    """The same loss as a sum; its float operands in 32 bit if they are f16, where the sum would overflow."""
    op = with_arguments(op, reduction=_SUM)
    return replace(op, args=tuple(_out_of_half(arg, build) for arg in op.args))


def _out_of_half(arg: Arg, build: Builder) -> Arg:
    if not isinstance(arg, Ref) or build.type_of(arg).dtype != "f16":
        return arg
    return _cast(arg, replace(build.type_of(arg), dtype="f32"), build)


def _quotient(op: Op, total: Ref, count: Ref | Dim, build: Builder) -> Op:
    """`total / count` as the result of `op`, computed in at least 32 bit: 16 bit cannot hold a count."""
    wide = replace(op.result.type, dtype=_wide(op.result.type.dtype))
    total = _cast(total, wide, build)
    if wide == op.result.type:
        return Op("aten.div.Tensor", (total, count), (), op.results, op.source)
    quotient = build.emit("aten.div.Tensor", (total, count), wide)
    kwargs = (("dtype", Const("dtype", op.result.type.dtype)),)
    return Op("aten._to_copy.default", (quotient,), kwargs, op.results, op.source)


def _count(target: Arg, ignored: Arg, type_: TensorType, build: Builder) -> Ref:
    kept = _kept(target, ignored, build)
    dims = tuple(range(len(build.type_of(kept).shape)))
    return _cast(build.emit("aten.sum.dim_IntList", (kept, dims), TensorType("i64", ())), type_, build)


def _total_weight(weight: Arg, target: Arg, ignored: Arg, type_: TensorType, build: Builder) -> Ref:
    targets = build.type_of(target)
    kept = _kept(target, ignored, build)
    safe = build.emit("aten.mul.Tensor", (target, kept), targets)
    weights = build.emit("aten.index.Tensor", (weight, (safe,)), build.type_of(weight).with_shape(targets.shape))
    weights = _cast(weights, type_.with_shape(targets.shape), build)
    masked = build.emit("aten.mul.Tensor", (weights, kept), type_.with_shape(targets.shape))
    return build.emit("aten.sum.dim_IntList", (masked, tuple(range(len(targets.shape)))), type_)


def _kept(target: Arg, ignored: Arg, build: Builder) -> Ref:
    return build.emit("aten.ne.Scalar", (target, ignored), replace(build.type_of(target), dtype="bool"))


def _cast(ref: Ref, type_: TensorType, build: Builder) -> Ref:
    if build.type_of(ref).dtype == type_.dtype:
        return ref
    return build.emit("aten._to_copy.default", (ref,), type_, dtype=Const("dtype", type_.dtype))


def _wide(dtype: str) -> str:
    return "f32" if dtype in ("f16", "bf16") else dtype


def _broadcast_shape(op: Op, build: Builder) -> tuple[Dim, ...]:
    shapes = [build.values[name].type.shape for name in op.operands]
    rank = max(len(shape) for shape in shapes)
    padded = [(1,) * (rank - len(shape)) + tuple(shape) for shape in shapes]
    return tuple(next((size for size in sizes if size != 1), 1) for sizes in zip(*padded, strict=True))


def _product(sizes: Iterable[Dim]) -> Dim:
    return TensorType("i64", tuple(sizes)).numel
