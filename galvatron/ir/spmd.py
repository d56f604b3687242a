"""Ops that a rank runs on its slice of a dimension which the ATen op must see whole: they communicate inside.

`spmd.X` takes the arguments of `aten.X`, with one dimension sharded on a mesh axis, and more keyword arguments: `axis`,
the name of the axis in the class mesh, `size`, the whole size of that dimension, and for an op to which it matters
`folded=True` where the slices are folded. Its gradients need no communication beyond its own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from galvatron.ir.graph import Arg, Op
from galvatron.ir.layout import PARTIAL, REPLICATE, Partial, Replicate
from galvatron.ir.types import Dim

KEYWORDS = ("axis", "size", "folded")


@dataclass(frozen=True)
class SpmdOp:
    """One op of the table.

    `result` is the placement, on the axis, of a result without the sharded dimension. `forward` and `backward` are the
    collectives it runs inside, each with how many numbers it carries per row of its first operand. `folded` says what
    it makes of folded slices: it takes none, it takes any without a difference, or it must be told.
    """

    result: Replicate | Partial
    forward: tuple[tuple[str, int], ...] = ()
    backward: tuple[tuple[str, int], ...] = ()
    folded: Literal["none", "alike", "told"] = "none"


SPMD_OPS: dict[str, SpmdOp] = {
    "embedding": SpmdOp(PARTIAL),
    "cross_entropy_loss": SpmdOp(REPLICATE, forward=(("all_reduce", 1), ("all_reduce", 3))),
    "scaled_dot_product_attention": SpmdOp(REPLICATE, folded="told"),
    "logsumexp": SpmdOp(REPLICATE, forward=(("all_reduce", 1), ("all_reduce", 1)), folded="alike"),
}
"""Name of the ATen op → its sharded counterpart."""


def spmd_target(op: Op) -> str:
    """The sharded counterpart of an ATen op."""
    return f"spmd.{op.target.split('.')[1]}"


def along_axis(op: Op, axis: str, size: Dim, *, folded: bool) -> Op:
    """The sharded counterpart of an ATen op, with slices of a dimension of a whole `size` on an axis."""
    told: tuple[tuple[str, Arg], ...] = (("axis", axis), ("size", size))
    if folded and SPMD_OPS[op.target.split(".")[1]].folded == "told":
        told = (*told, ("folded", True))
    return replace(op, target=spmd_target(op), kwargs=(*op.kwargs, *told))


def without_axis(op: Op) -> Op:
    """The ATen op that an op of the table is on the whole dimension; other ops as they are."""
    if not is_spmd(op.target):
        return op
    target = f"aten.{op.target.removeprefix('spmd.')}.default"
    return replace(op, target=target, kwargs=tuple((k, v) for k, v in op.kwargs if k not in KEYWORDS))


def is_spmd(target: str) -> bool:
    return target.startswith("spmd.") and target.removeprefix("spmd.") in SPMD_OPS
