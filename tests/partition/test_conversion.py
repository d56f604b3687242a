"""Redistribution: from every layout to every other, values and gradients, on ranks simulated in lockstep."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from galvatron.debugging.simulation import combine, distribute, dual_layout, exchange, mesh_of
from galvatron.ir.collectives import COLLECTIVES
from galvatron.ir.graph import Value
from galvatron.ir.layout import (
    BROADCAST,
    PARTIAL,
    REPLICATE,
    Layout,
    Mesh,
    Placement,
    Shard,
    cutting_problem,
    is_routed,
    local_shape,
)
from galvatron.ir.types import TensorType
from galvatron.partition.conversion import chooses_for, redistribute
from tests.marks import some_slow

# Factors of the first dimension: 4 · 4 · 3 elements, so that either factor can be sharded by two axes of size 2.
SHAPE = (48, 4)
PLACEMENTS: tuple[Placement, ...] = (
    REPLICATE,
    BROADCAST,
    PARTIAL,
    Shard(0),
    Shard(0, folded=True),
    Shard(0, outer=4),
    Shard(1),
)


def check(source: Layout, target: Layout, mesh: Mesh, shape: tuple[int, ...] = SHAPE) -> list[str]:
    """Executes the conversion and returns the collectives it took."""
    whole, gradient = torch.randn(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64)
    names = iter(f"v{i}" for i in range(100))
    type_ = TensorType("f64", shape)
    value = Value("x", type_.with_shape(local_shape(shape, source, mesh)), source)
    ops = redistribute(value, target, mesh, type_, fresh_name=lambda _: next(names))
    leaves = [t.requires_grad_() for t in distribute(whole, source, mesh)]
    parts = leaves
    for op in ops:
        parts = exchange(op, mesh, parts)
        assert tuple(parts[0].shape) == op.result.type.shape
        kind, told = COLLECTIVES[op.target], dict(op.kwargs)
        assert op.kwargs == kind.written(told) and set(kind.keywords) <= set(told)
        assert not cutting_problem(shape, op.result.layout or (), mesh)
    assert (ops[-1].result.layout if ops else source) == target
    torch.testing.assert_close(combine([p.detach() for p in parts], target, mesh, shape), whole)
    gradients = distribute(gradient, dual_layout(target), mesh)
    torch.autograd.backward(parts, gradients)
    made = [leaf.grad if leaf.grad is not None else torch.zeros_like(leaf) for leaf in leaves]
    torch.testing.assert_close(combine(made, dual_layout(source), mesh, shape), gradient)
    return [op.target for op in ops]


@pytest.mark.parametrize("size", [2, 3])
def test_one_axis_from_every_placement_to_every_other(size: int) -> None:
    shape = (12, 2, 4 * size)
    shards = (Shard(0), Shard(0, outer=12 // size), Shard(2), Shard(2, outer=2))
    folded = (Shard(0, folded=True), Shard(2, folded=True), Shard(2, outer=2, folded=True))
    placements = (REPLICATE, BROADCAST, PARTIAL, *shards, *folded)
    for source, target in product(placements, repeat=2):
        taken = check((source,), (target,), mesh_of(size), shape)
        assert len(taken) == (0 if source == target else 2 if (source, target) == (BROADCAST, PARTIAL) else 1)


@pytest.mark.one_in(6)
@pytest.mark.parametrize("source_inner", PLACEMENTS, ids=str)
def test_two_axes_from_every_layout_to_every_other(source_inner: Placement) -> None:
    mesh = mesh_of(2, 2)
    for source_outer, *target in product(PLACEMENTS, repeat=3):
        check((source_outer, source_inner), (target[0], target[1]), mesh)


@pytest.mark.parametrize("axes", some_slow([2], [3]))
def test_rows_that_are_where_they_choose_come_to_every_layout_and_from_it(axes: int) -> None:
    """Whatever other axes do to their dimension meanwhile, no way comes back to a layout that it has left, and rows are
    sent by what chooses for those at its ends."""
    mesh, type_ = mesh_of(*[2] * axes), TensorType("f64", SHAPE)
    others = (REPLICATE, BROADCAST, PARTIAL, Shard(0), Shard(1))
    asked: set[Layout] = set()

    def choosing(_: str, rows: Layout) -> tuple[Value, int]:
        asked.add(chooses_for(rows))
        return Value("by", TensorType("i64", local_shape(SHAPE[:1], chooses_for(rows), mesh))), len(SHAPE)

    for routed in range(axes):
        each = [(Shard(0, by="by"), *others) if axis == routed else others for axis in range(axes)]
        layouts = [layout for layout in product(*each) if not cutting_problem(SHAPE, layout, mesh)]
        for source, target in product(layouts, repeat=2):
            value = Value("x", type_.with_shape(local_shape(SHAPE, source, mesh)), source)
            asked.clear()
            ops = redistribute(value, target, mesh, type_, fresh_name=lambda hint: hint, choosing=choosing)
            assert asked <= {chooses_for(rows) for rows in (source, target) if any(map(is_routed, rows))}
            passed = [source, *(op.result.layout for op in ops)]
            assert passed[-1] == target
            assert len(set(passed)) == len(passed)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), sizes=st.sampled_from([(2, 3), (3, 2), (2, 2, 2)]))
def test_unequal_and_three_axes(data: st.DataObject, sizes: tuple[int, ...]) -> None:
    shards = (Shard(0), Shard(0, folded=True), Shard(0, outer=6), Shard(0, outer=24, folded=True), Shard(1))
    placements = st.sampled_from((REPLICATE, BROADCAST, PARTIAL, *shards))
    shape, mesh = (24 * 24, 24), mesh_of(*sizes)
    layouts = st.tuples(*[placements] * len(sizes)).filter(lambda layout: not cutting_problem(shape, layout, mesh))
    check(data.draw(layouts), data.draw(layouts), mesh, shape)


def test_values_without_a_gradient_need_nothing_between_the_two_replicated_placements() -> None:
    mesh, type_ = mesh_of(2), TensorType("i64", (4,))
    for source, target in ((REPLICATE, BROADCAST), (BROADCAST, REPLICATE)):
        value = Value("x", type_, (source,))
        assert redistribute(value, (target,), mesh, type_, differentiable=False, fresh_name=str) == ()
