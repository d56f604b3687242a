"""Indexing by ranges: `x[arange(B), j]` gathers nothing across the batch, `x[:, arange(n)]` gathers nothing at all."""

from __future__ import annotations

from dataclasses import replace

from galvatron.ir.graph import Arg, Op, Ref
from galvatron.ir.ops.sizes import broadcast
from galvatron.ir.types import BATCH, Dim, simplify_dim
from galvatron.rewriting import Builder

_VIEWS = ("aten.unsqueeze.default", "aten.reshape.default")


def whole_range_index(op: Op, build: Builder) -> Op | None:
    """`x[:, arange(n)[:, None]]` with all n positions of a dim is a `reshape`."""
    indices = op.args[1]
    assert isinstance(indices, tuple)
    *leading, last = indices
    if any(index is not None for index in leading):
        return None
    if not counts(last, build.type_of(op.args[0]).shape[len(leading)], build):
        return None
    return replace(op, target="aten.reshape.default", args=(op.args[0], op.result.type.shape))


def batched_index(op: Op, build: Builder) -> Ref | None:
    """`x[arange(B)[:, None, …], j, …]` as `x[:, j, …]` where the other indices are the same for every sample.

    Where there is one other index and it does depend on the sample, as in `x[arange(B), last_token]`, it is a `gather`.
    """
    source, indices = op.args[0], op.args[1]
    assert isinstance(indices, tuple)
    first, *others = indices
    if not (counts(first, BATCH, build) and others and all(isinstance(i, Ref) for i in others)):
        return None
    if any(build.type_of(i).dtype in ("bool", "u8") for i in others):
        return None
    if build.type_of(first).shape[0] != BATCH or build.type_of(source).shape[0] != BATCH:
        return None
    rank = len(build.type_of(first).shape)
    shared = [_without_sample_dim(i, rank, build) for i in others]
    if all(i is not None for i in shared):
        return _indexed(op, source, tuple(i for i in shared if i is not None), build)
    return _gathered(op, source, others[0], build) if len(others) == 1 else None


def counts(index: Arg, size: Dim, build: Builder) -> bool:
    """Whether an index is `arange(size)` in some shape with one dim larger than 1."""
    if not isinstance(index, Ref) or build.type_of(index).numel != size:
        return False
    producer = build.producer(index)
    while producer is not None and producer.target in _VIEWS:
        producer = build.producer(producer.args[0])
    return producer is not None and (producer.target, producer.args) in (
        ("aten.arange.default", (size,)),
        ("aten.arange.start", (0, size)),
        ("aten.arange.start_step", (0, size)),
    )


def _without_sample_dim(index: Arg, rank: int, build: Builder) -> Ref | None:
    """The index without its dim of samples, if it does not vary along it."""
    assert isinstance(index, Ref)
    shape = build.type_of(index).shape
    if len(shape) < rank:
        return index
    return build.reshape(index, shape[1:]) if len(shape) == rank and shape[0] == 1 else None


def _indexed(op: Op, source: Arg, indices: tuple[Ref, ...], build: Builder) -> Ref:
    gathered = broadcast([build.type_of(i).shape for i in indices])
    rest = build.type_of(source).shape[1 + len(indices) :]
    type_ = op.result.type.with_shape((BATCH, *gathered, *rest))
    return build.reshape(build.emit("aten.index.Tensor", source, (None, *indices), type_=type_), op.result.type.shape)


def _gathered(op: Op, source: Arg, index: Arg, build: Builder) -> Ref | None:
    values, positions = build.type_of(source), build.type_of(index)
    if positions.shape[:1] != (BATCH,) or values.shape[:1] != (BATCH,):
        return None
    count = simplify_dim(positions.numel / BATCH)
    size, rest = values.shape[1], values.shape[2:]
    wrapped = build.emit("aten.remainder.Scalar", build.reshape(index, (BATCH, count)), size)
    aligned = build.expand(build.reshape(wrapped, (BATCH, count, *(1 for _ in rest))), (BATCH, count, *rest))
    gathered = build.emit("aten.gather.default", source, 1, aligned, type_=values.with_shape((BATCH, count, *rest)))
    return build.reshape(gathered, op.result.type.shape)
