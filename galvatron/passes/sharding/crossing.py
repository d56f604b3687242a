"""Redistribution between layers: the little graph that takes a value from one layer's layout to the next one's."""

from __future__ import annotations

from galvatron.ir.graph import Graph, Value
from galvatron.ir.layout import Axis, Layout, gradientless, joint_mesh, on_mesh
from galvatron.ir.program import LayerClass
from galvatron.ir.types import TensorType
from galvatron.passes.sharding.conversion import redistribute


def redistribution_class(
    name: str,
    whole: TensorType,
    source: tuple[Layout, tuple[Axis, ...]],
    target: tuple[Layout, tuple[Axis, ...]],
    *,
    local: TensorType,
    differentiable: bool,
) -> LayerClass | None:
    """A class with one input and one output that changes a value's layout, on the mesh that refines both; None when the layouts
    are the same.

    Args:
        whole: the type of the value over all ranks of the stage.
        source: layout and mesh of the producer, `target` those of the consumer.
        local: the value's local type at the producer.

    Raises:
        GalvatronError: the two meshes overlap without nesting.
    """
    mesh = joint_mesh(source[1], target[1])
    before, after = on_mesh(*source, mesh), on_mesh(*target, mesh)
    if not differentiable:
        before, after = gradientless(before), gradientless(after)
    if before == after:
        return None
    value = Value("x", local, before)
    taken = {"x"}

    def fresh(hint: str) -> str:
        candidate = hint if hint not in taken else f"{hint}_{len(taken)}"
        taken.add(candidate)
        return candidate

    ops = redistribute(value, after, mesh, whole, differentiable=differentiable, fresh_name=fresh)
    return LayerClass(name, Graph((value,), (), ops, (ops[-1].result.name,)), mesh=mesh)
