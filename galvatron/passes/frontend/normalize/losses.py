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
from galvatron.rewriting import Builder
from galvatron.rewriting.arguments import with_arguments

_NONE, _MEAN, _SUM = 0, 1, 2
"""ATen's values of `reduction`."""


def batch_mean(op: Op, build: Builder) -> Op | None:
    """`mean` over dims that hold the batch, as `sum / (number of terms)`."""
    arguments = op.arguments
    source = build.type_of(op.args[0])
    dims = arguments.get("dim")
    dims = tuple(range(len(source.shape))) if dims in (None, ()) else dims
    assert isinstance(dims, tuple)
    count = _product(source.shape[d] for d in dims if isinstance(d, int) and source.shape)  # a number has no dims
    if isinstance(count, int):
        return None
    wide = replace(op.result.type, dtype=_wide(op.result.type.dtype))
    dtype = {} if wide.dtype == source.dtype else {"dtype": Const("dtype", wide.dtype)}
    keepdim = (True,) if arguments.get("keepdim") else ()
    total = build.emit("aten.sum.dim_IntList", op.args[0], dims, *keepdim, type_=wide, **dtype)
    return _quotient(op, total, count, build)


def mean_of_elements(op: Op, build: Builder) -> Op | None:
    """A loss that averages over all elements of its broadcast operands: `mse_loss`, `l1_loss`, `kl_div`, …"""
    return _averaged(op, _product(_broadcast_shape(op, build)), build)


def mean_of_samples(op: Op, build: Builder) -> Op | None:
    """A loss with one term per sample, whose operands end in a feature dim: `triplet_margin_loss`, …"""
    return _averaged(op, _product(_broadcast_shape(op, build)[:-1]), build)


def mean_of_targets(op: Op, build: Builder) -> Op | None:
    """A loss that averages over the targets which are not `ignore_index`, weighted by class if there are weights."""
    arguments = op.arguments
    if arguments["reduction"] != _MEAN:
        return None
    scores, target = (build.type_of(arguments[name]) for name in ("self", "target"))
    if target.is_floating:  # probabilities: one term per sample, whatever the class weights
        classes = scores.shape[1 if len(scores.shape) > 1 else 0]
        return _averaged(op, simplify_dim(sympy.sympify(scores.numel) / classes), build)
    op = _sum_of(op, build)
    total_type = build.type_of(op.args[0]).with_shape(())
    dtype = _wide(total_type.dtype)
    weight = arguments["weight"]
    if weight is None:
        count = _count(arguments["target"], arguments["ignore_index"], dtype, build)
    else:
        count = _total_weight(weight, arguments["target"], arguments["ignore_index"], dtype, build)
    total = build.emit(op.target, *op.args, type_=total_type)
    return _quotient(op, total, count, build)


def mean_of_alignments(op: Op, build: Builder) -> Op | None:
    """`ctc_loss`, each term of which is divided by the length of its target first."""
    if op["reduction"] != _MEAN:
        return None
    each = with_arguments(op, reduction=_NONE)
    lengths = op["target_lengths"]
    samples = build.type_of(lengths).shape
    losses = build.emit(each.target, *each.args, type_=op.result.type.with_shape(samples), **dict(each.kwargs))
    divisors = build.cast(build.emit("aten.clamp_min.default", lengths, 1), op.result.type.dtype)
    return _quotient(op, _sum(build.emit("aten.div.Tensor", losses, divisors), build), _product(samples), build)


def loss_without_total_weight(op: Op, build: Builder) -> Op | None:
    """`nll_loss_forward` whose second result nobody reads is `nll_loss`."""
    if build.reads[op.results[1].name]:
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
    total = build.emit(op.target, *op.args, type_=total_type, **dict(op.kwargs))
    return _quotient(op, total, count, build)


def _sum_of(op: Op, build: Builder) -> Op:
    """The same loss as a sum; its float operands in 32 bit if they are f16, where the sum would overflow."""
    op = with_arguments(op, reduction=_SUM)
    return replace(op, args=tuple(_out_of_half(arg, build) for arg in op.args))


def _out_of_half(arg: Arg, build: Builder) -> Arg:
    return build.cast(arg, "f32") if isinstance(arg, Ref) and build.type_of(arg).dtype == "f16" else arg


def _quotient(op: Op, total: Ref, count: Ref | Dim, build: Builder) -> Op:
    """`total / count` as the result of `op`, computed in at least 32 bit: 16 bit cannot hold a count."""
    dtype = op.result.type.dtype
    total = build.cast(total, _wide(dtype))
    if _wide(dtype) == dtype:
        return Op("aten.div.Tensor", (total, count), (), op.results, op.source)
    quotient = build.emit("aten.div.Tensor", total, count)
    return Op("aten._to_copy.default", (quotient,), (("dtype", Const("dtype", dtype)),), op.results, op.source)


def _count(target: Arg, ignored: Arg, dtype: str, build: Builder) -> Ref:
    return build.cast(_sum(_kept(target, ignored, build), build), dtype)


def _total_weight(weight: Arg, target: Arg, ignored: Arg, dtype: str, build: Builder) -> Ref:
    kept = _kept(target, ignored, build)
    safe = build.emit("aten.mul.Tensor", target, kept)
    type_ = build.type_of(weight).with_shape(build.type_of(target).shape)
    weights = build.cast(build.emit("aten.index.Tensor", weight, (safe,), type_=type_), dtype)
    return _sum(build.emit("aten.mul.Tensor", weights, kept), build)


def _kept(target: Arg, ignored: Arg, build: Builder) -> Ref:
    return build.emit("aten.ne.Scalar", target, ignored)


def _sum(ref: Ref, build: Builder) -> Ref:
    return build.emit("aten.sum.dim_IntList", ref, tuple(range(len(build.type_of(ref).shape))))


def _wide(dtype: str) -> str:
    return "f32" if dtype in ("f16", "bf16") else dtype


def _broadcast_shape(op: Op, build: Builder) -> tuple[Dim, ...]:
    shapes = [build.types[name].shape for name in op.operands]
    rank = max(len(shape) for shape in shapes)
    padded = [(1,) * (rank - len(shape)) + tuple(shape) for shape in shapes]
    return tuple(next((size for size in sizes if size != 1), 1) for sizes in zip(*padded, strict=True))


def _product(sizes: Iterable[Dim]) -> Dim:
    return TensorType("i64", tuple(sizes)).numel
