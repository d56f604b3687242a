"""Ops that a rank runs on its slice of a dimension which the ATen op must see whole: they communicate inside.

`spmd.X` takes the arguments of `aten.X`, with one dimension sharded on a mesh axis, and two more keyword arguments:
`axis`, the name of the axis in the class mesh, and `size`, the whole size of that dimension. Its gradients need no
communication beyond its own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from galvatron.ir.graph import Op
from galvatron.ir.layout import PARTIAL, REPLICATE, Partial, Replicate
from galvatron.ir.ops.targets import parsed

KEYWORDS = ("axis", "size")


@dataclass(frozen=True)
class SpmdOp:
    """One op of the table.

    `result` is the placement, on the axis, of a result without the sharded dimension. `forward` and `backward` are the
    collectives it runs inside, each with how many numbers it
    carries per row of its first operand.
    """

    result: Replicate | Partial
    forward: tuple[tuple[str, int], ...] = ()
    backward: tuple[tuple[str, int], ...] = ()


SPMD_OPS: dict[str, SpmdOp] = {
    "embedding": SpmdOp(PARTIAL),
    "cross_entropy_loss": SpmdOp(REPLICATE, forward=(("all_reduce", 1), ("all_reduce", 3))),
    "scaled_dot_product_attention": SpmdOp(REPLICATE),
    "logsumexp": SpmdOp(REPLICATE, forward=(("all_reduce", 1), ("all_reduce", 1))),
}
"""Name of the ATen op → its sharded counterpart."""


def spmd_target(op: Op) -> str:
    """The sharded counterpart of an ATen op."""
    return f"spmd.{op.name}"


def without_axis(op: Op) -> Op:
    """The ATen op that an op of the table is on the whole dimension; other ops as they are."""
    if not is_spmd(op.target):
        return op
    return replace(
        op, target=f"aten.{op.name}.default", kwargs=tuple((k, v) for k, v in op.kwargs if k not in KEYWORDS)
    )


def is_spmd(target: str) -> bool:
    called = parsed(target)
    return called.namespace == "spmd" and called.short in SPMD_OPS
