"""Masks and positions that are the same for every sample are computed for one.

A model expands its masks to the batch early: `[B, 1, n, n]`. Where an op broadcasts anyhow, it reads the value of one
sample instead, `[1, 1, n, n]`, computed by the same ops at B = 1. That every sample has this value follows from the
sharding rules: what no batch input goes into, and whose dim of samples every op on the way keeps apart from the other
dims, varies with the sample only if an op counts samples; such ops have B among their arguments.
"""

from __future__ import annotations

from galvatron.ir.graph import Arg, Op, Ref
from galvatron.ir.ops.sizes import broadcast, same_shape
from galvatron.ir.ops.table import is_pointwise, op_dims, operator_of
from galvatron.ir.random import is_random
from galvatron.ir.types import BATCH, TensorType, has_samples
from galvatron.rewriting import Builder
from galvatron.rewriting.arguments import with_arguments


def read_for_one_sample(op: Op, build: Builder) -> Op | None:
    """Attention and pointwise ops read masks of one sample where all samples have the same."""
    alike = [name for name in dict.fromkeys(op.operands) if build.known(_is_alike, name)]
    shared = _broadcast_operands(op, alike, build)
    if not shared or _makes_alike(op, build):
        return None
    return op.map_refs(lambda name: _single(name, build) if name in shared else name)


def _is_alike(name: str, build: Builder) -> bool:
    """Whether a value is the same for every sample; asked at every op in turn, it need not look far back."""
    op = build.producer(Ref(name))
    return name in build.state if op is None else _makes_alike(op, build)


def _makes_alike(op: Op, build: Builder) -> bool:
    """Whether the results of an op are the same for every sample."""
    alike = all(build.known(_is_alike, name) for name in op.operands)
    return alike and not is_random(op) and _keeps_samples_apart(op, build.types)


def _keeps_samples_apart(op: Op, types: dict[str, TensorType]) -> bool:
    """Whether each sample's part of the results is computed from its part of the operands, and alike for all."""
    if not all(_counts_no_samples(a) for a in _other_arguments(op)):
        return False
    operands = [_sample_dim(types[name]) for name in op.operands]
    results = [_sample_dim(value.type) for value in op.results]
    if None in operands or None in results:
        return False
    if all(at == _NOWHERE for at in (*operands, *results)):
        return True
    if _NOWHERE in results:
        return False
    if all(at == _NOWHERE for at in operands):
        return bool(operator_of(op).size)
    dims = op_dims(op, types)
    if dims is None:
        return False
    pairs = [*zip(dims.operands, operands, strict=True), *zip(dims.results, results, strict=True)]
    names = {named[at] for named, at in pairs if at is not None and at != _NOWHERE}
    whole = dims.indivisible | dims.spmd
    return len(names) == 1 and all(len(name) == 1 and whole.isdisjoint(name) for name in names)


_NOWHERE = -1


def _sample_dim(type_: TensorType) -> int | None:
    """Where the dim of samples is; `_NOWHERE` if there is none, None if B is in more than one dim or in a product."""
    symbolic = [i for i, size in enumerate(type_.shape) if has_samples(size)]
    if not symbolic:
        return _NOWHERE
    return symbolic[0] if len(symbolic) == 1 and type_.shape[symbolic[0]] == BATCH else None


def _other_arguments(op: Op) -> list[Arg]:
    """The arguments less the size of the result, of which the type speaks."""
    return [value for name, value in op.arguments.items() if name != operator_of(op).size]


def _counts_no_samples(arg: Arg) -> bool:
    return all(map(_counts_no_samples, arg)) if isinstance(arg, tuple) else not has_samples(arg)


def _broadcast_operands(op: Op, alike: list[str], build: Builder) -> list[str]:
    """Those operands of an op, the same for every sample, whose dim of samples it does not need."""
    expanded = [name for name in alike if _sample_dim(build.types[name]) != _NOWHERE]
    if mask := operator_of(op).mask:
        return [name for name in expanded if op[mask] == Ref(name) and op.operands.count(name) == 1]
    if not expanded or not is_pointwise(op):
        return []
    shapes = {name: build.types[name].shape for name in op.operands}
    chosen: list[str] = []
    for name in expanded:
        narrow = shapes | {name: _for_one(build.types[name]).shape}
        if same_shape(broadcast(list(narrow.values())), op.result.type.shape):
            shapes = narrow
            chosen.append(name)
    return chosen


def _single(name: str, build: Builder) -> str:
    """The value that every sample has, with one sample."""
    op = build.producer(Ref(name))
    if op is None or _sample_dim(build.types[name]) == _NOWHERE:
        return name
    names = [value.name for value in op.results]
    return build.known(_made_for_one, names[0]).results[names.index(name)].name


def _made_for_one(name: str, build: Builder) -> Op:
    """The op whose first result this is, once more and for one sample."""
    op = build.producer(Ref(name))
    assert op is not None
    read = op.map_refs(lambda operand: _single(operand, build))
    sized = {n: _with_one(a) for n, a in op.arguments.items() if n == operator_of(op).size}
    return build.emit_op(with_arguments(read, **sized), *(_for_one(value.type) for value in op.results))


def _for_one(type_: TensorType) -> TensorType:
    return type_.with_shape(tuple(1 if size == BATCH else size for size in type_.shape))


def _with_one(sizes: Arg) -> Arg:
    return tuple(1 if size == BATCH else size for size in sizes) if isinstance(sizes, tuple) else sizes
