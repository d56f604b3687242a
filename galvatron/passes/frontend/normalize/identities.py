"""Ops that say nothing, and ops that say the same as another one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from galvatron.ir.graph import Arg, Const, Op, Ref
from galvatron.rewriting import Builder, Match, Meanings


def as_result(match: Match) -> dict[str, Arg]:
    """The size and the element type of the result."""
    return {"size": match.type.shape, "dtype": Const("dtype", match.type.dtype)}


def filled_with(value: float | None = None) -> Callable[[Match], Meanings]:
    """The value that a constant tensor is filled with, as one of its element type; by default the `value` matched."""

    def where(match: Match) -> Meanings:
        fill = match["value"] if value is None else value
        return as_result(match) | {"value": bool(fill) if match.type.dtype == "bool" else fill}

    return where


def no_gradient(match: Match) -> Meanings:
    """No gradient flows through the operand."""
    return None if match.ref("x").name in match.build.differentiable else {}


def swapped(match: Match) -> Meanings:
    """The last two dims change places, where there are two."""
    order = list(range(len(match.type.shape)))
    order[-2:] = reversed(order[-2:])
    return {"order": tuple(order)}


def reversed_dims(match: Match) -> Meanings:
    """Dims from the last to the first."""
    return {"order": tuple(range(len(match.type.shape)))[::-1]}


def moved(match: Match) -> Meanings:
    """Dims `source` go to `destination`, the others keep their order."""
    sources, destinations = (d if isinstance(d, tuple) else (d,) for d in (match["source"], match["destination"]))
    order = [d for d in range(len(match.type.shape)) if d not in sources]
    for position, dim in sorted(zip(destinations, sources, strict=True)):  # type: ignore[type-var]  # dims
        order.insert(position, dim)  # type: ignore[arg-type]  # dims
    return {"order": tuple(order)}


def same_order(match: Match) -> Meanings:
    """Every dim stays where it is."""
    return {} if match["order"] == tuple(range(len(match.type.shape))) else None


_GREATEST = {"f64": 1.7976931348623157e308, "f32": 3.4028234663852886e38, "bf16": 3.3895313892515355e38, "f16": 65504.0}
"""The greatest finite number of each floating type."""


def changes_nothing_finite(match: Match) -> Meanings:
    """All finite numbers are between the bounds."""
    low, high, greatest = match["low"], match["high"], _GREATEST.get(match.type.dtype)
    if greatest is None or not isinstance(low, (int, float)) or not isinstance(high, (int, float)):
        return None
    return {} if low <= -greatest and greatest <= high else None


def to_end(match: Match) -> Meanings:
    """A range by its length ends there."""
    return {"end": match["start"] + match["length"]}  # type: ignore[operator]  # sizes


def all_dims(match: Match) -> Meanings:
    """No dims are given, which means all."""
    return {"dims": tuple(range(len(match.type_of("x").shape))), "keepdim": match.names.get("keepdim", False)}


def cat_with_nothing(op: Op, build: Builder) -> Op | Ref | None:
    """`cat` of one tensor, or of tensors some of which are empty, as an unused key-value cache is."""
    parts, dim = op.args
    assert isinstance(parts, tuple)
    kept = tuple(part for part in parts if build.type_of(part).numel != 0)
    if len(kept) == 1 and isinstance(kept[0], Ref):
        return kept[0]
    return replace(op, args=(kept, dim)) if kept and len(kept) < len(parts) else None


def inactive_dropout_with_mask(op: Op, build: Builder) -> tuple[Ref, ...] | None:
    """`native_dropout` in eval mode or with probability 0: its mask is all True."""
    arguments = op.arguments
    if arguments["p"] != 0 and arguments["train"] is not False:
        return None
    mask = op.results[1].type
    everything = build.emit("aten.full.default", mask.shape, True, dtype=Const("dtype", mask.dtype))
    return Ref(op.operands[0]), everything


def dropout_without_mask(op: Op, build: Builder) -> Op | None:
    """`native_dropout` whose mask nobody reads is `dropout`."""
    if build.reads[op.results[1].name]:
        return None
    arguments = op.arguments
    return Op("aten.dropout.default", (arguments["input"], arguments["p"], True), (), op.results[:1], op.source)


def batch_norm_without_saved_statistics(op: Op, build: Builder) -> Op | None:
    """Batch norm with given statistics, which saves none: it has one result, of the shape of its input."""
    if any(build.reads[saved.name] for saved in op.results[1:]):
        return None
    *operands, momentum, eps = op.arguments.values()
    args = (*operands, False, momentum, eps, False)
    return Op("aten.batch_norm.default", args, (), op.results[:1], op.source)


def broadcast(op: Op, build: Builder) -> tuple[Ref, ...]:
    """`broadcast_tensors` is an `expand` of each operand that needs one."""
    return tuple(build.expand(Ref(n), v.type.shape) for n, v in zip(op.operands, op.results, strict=True))


def chunks_as_split(op: Op, build: Builder) -> Op:
    """`chunk` as `split` into pieces of the size of the first."""
    dim = op["dim"]
    assert isinstance(dim, int)
    return replace(op, target="aten.split.Tensor", args=(op.args[0], op.results[0].type.shape[dim], dim), kwargs=())
