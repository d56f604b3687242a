"""Ops that a rank runs on its slice of a dimension which the op itself must see whole: they communicate inside.

`spmd.X` takes the arguments of `aten.X`, or of `galvatron.X`, with one dimension sharded on a mesh axis, and more
keyword arguments: `axis`, the name of the axis in the class mesh, `size`, the whole size of that dimension, and for an
op to which it matters `folded=True` where the slices are folded, `routed=True` where the rows are those that
choose something of this rank (`OnSlices.routes`). Its gradients need no communication beyond its own.
"""

from __future__ import annotations

from dataclasses import replace

from galvatron.ir.graph import Arg, Graph, Op
from galvatron.ir.ops.operator import OnSlices
from galvatron.ir.ops.schemas import whole_target
from galvatron.ir.ops.table import of_target, op_dims, operator_of
from galvatron.ir.ops.targets import parsed
from galvatron.ir.types import Dim

FLAGS = ("folded", "routed")
KEYWORDS = ("axis", "size", *FLAGS)


def spmd_target(op: Op) -> str:
    """The sharded counterpart of an ATen op."""
    return f"spmd.{op.name}"


def on_slices(op: Op) -> OnSlices:
    """What is known of the sharded counterpart, of an op that has one."""
    found = operator_of(op).on_slices
    assert found is not None, op.target
    return found


def along_axis(op: Op, axis: str, size: Dim, *, folded: bool, routed: bool = False) -> Op:
    """The sharded counterpart of an op, with slices of a dimension of a whole `size` on an axis."""
    told: tuple[tuple[str, Arg], ...] = (("axis", axis), ("size", size))
    if folded and on_slices(op).folded == "told":
        told = (*told, ("folded", True))
    if routed:
        told = (*told, ("routed", True))
    return replace(op, target=spmd_target(op), kwargs=(*op.kwargs, *told))


def without_axis(op: Op) -> Op:
    """The op that such an op is on the whole dimension; other ops as they are."""
    if not is_spmd(op.target):
        return op
    return replace(op, target=whole_target(op.target), kwargs=tuple((k, v) for k, v in op.kwargs if k not in KEYWORDS))


def chosen_matrices(graph: Graph) -> tuple[int, ...]:
    """Of each op of a graph whose rows may go to the ranks of what they choose, among how many they choose."""
    found: list[int] = []
    for op in graph.ops:
        counterpart = operator_of(op).on_slices
        if counterpart is not None and counterpart.routes:
            dims = op_dims(without_axis(op), graph.types)
            found += [size for name in dims.spmd if isinstance(size := dims.sizes[name], int)] if dims else []
    return tuple(found)


def is_spmd(target: str) -> bool:
    called = parsed(target)
    return called.namespace == "spmd" and not called.overload and of_target(target).on_slices is not None
