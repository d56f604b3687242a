"""Layouts: which slices there are, and how those of several axes nest."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from galvatron import runtime as rt
from galvatron.debugging.simulation import combine, coordinate, distribute, kept, mesh_of
from galvatron.errors import GalvatronError
from galvatron.ir.layout import (
    BROADCAST,
    REPLICATE,
    Axis,
    Layout,
    Placement,
    Shard,
    contiguous,
    cutting_problem,
    global_shape,
    joined_layout,
    local_outer,
    local_shape,
    nameable_axes,
    on_mesh,
    padded_part,
    positions,
    uncut_mesh,
)

DP, TP = Axis("dp", 2, 4), Axis("tp", 4, 1)
OUTER, INNER = TP.cut(2)


@pytest.mark.parametrize(
    ("size", "ways", "part"), [(50257, 2, 25129), (50257, 8, 6283), (5, 2, 3), (5, 4, None), (9, 4, None), (8, 4, None)]
)
def test_slices_are_rounded_up_and_none_is_empty(size: int, ways: int, part: int | None) -> None:
    assert padded_part(size, ways) == part


def test_local_shapes() -> None:
    assert local_shape((50257, 64), (Shard(1), Shard(0, padded=True)), (DP, TP)) == (12565, 32)
    assert local_shape((50257, 64), (BROADCAST, Shard(0, padded=True)), (DP, TP)) == (12565, 64)
    for shape in ((50256, 64), (9, 64)):
        with pytest.raises(GalvatronError, match="dimension 0 of size .* cannot be padded on axis tp=4@1"):
            local_shape(shape, (BROADCAST, Shard(0, padded=True)), (DP, TP))
    with pytest.raises(GalvatronError, match="cannot be padded"):
        local_shape((50258, 64), (Shard(0), Shard(0, padded=True)), (DP, TP))


def test_filler_hides_the_whole_size() -> None:
    with pytest.raises(GalvatronError, match="is not known"):
        global_shape((12565, 64), (BROADCAST, Shard(0, padded=True)), (DP, TP))


def test_an_axis_is_cut_into_nested_parts() -> None:
    assert (str(OUTER), str(INNER)) == ("tp.0=2@2", "tp.1=2@1")
    twelve, rest = Axis("tp", 12, 5).cut(2)
    assert [str(a) for a in (twelve, *rest.cut(3))] == ["tp.0=2@30", "tp.1=3@10", "tp.2=2@5"]
    for rank in range(8):
        assert coordinate(TP, rank) == 2 * coordinate(OUTER, rank) + coordinate(INNER, rank)


def test_sub_axes_are_named_alone_or_together() -> None:
    mesh = (DP, OUTER, INNER)
    assert uncut_mesh(mesh) == (DP, TP)
    assert nameable_axes(mesh) == (DP, TP, OUTER, INNER)
    assert [positions(mesh, name) for name in ("dp", "tp", "tp.1", "ep")] == [(0,), (1, 2), (2,), ()]


def test_sub_axes_that_agree_are_one() -> None:
    mesh = (DP, OUTER, INNER)
    assert joined_layout((REPLICATE, Shard(0), Shard(0)), mesh) == ((REPLICATE, Shard(0)), (DP, TP))
    assert joined_layout((REPLICATE, Shard(0), BROADCAST), mesh) == ((REPLICATE, Shard(0), BROADCAST), mesh)
    apart = (REPLICATE, REPLICATE), (OUTER, DP)
    assert joined_layout(*apart) == apart


def test_two_factors_of_which_the_outer_is_used_up_are_cut_as_one() -> None:
    """Two key heads and their query heads: all query heads in a row."""
    assert contiguous((Shard(0), Shard(0, outer=2)), (OUTER, INNER)) == (Shard(0), Shard(0))
    left_over = (Shard(0), Shard(0, outer=4))
    assert contiguous(left_over, (OUTER, INNER)) == left_over
    assert contiguous((Shard(0), Shard(0, outer=2)), (DP, TP)) == (Shard(0), Shard(0, outer=2))
    twice = Axis("tp", 8, 1).cut(2)
    mesh = (twice[0], *twice[1].cut(2))
    assert contiguous((Shard(0), Shard(0, outer=2), Shard(0, outer=2)), mesh) == (Shard(0),) * 3


def test_nested_folds_are_one_fold() -> None:
    whole = (Axis("cp", 4, 1),)
    folded = (Shard(0, folded=True),)
    finer = whole[0].cut(2)
    nested = on_mesh(folded, whole, finer)
    assert nested == folded * 2
    assert joined_layout(nested, finer) == (folded, whole)
    for rank in range(4):
        assert torch.equal(kept(16, 0, folded, whole, rank), kept(16, 0, nested, finer, rank))


def test_a_fold_beside_another_axis_nests_or_is_refused() -> None:
    fold = Shard(0, folded=True)
    mesh = (Axis("a", 2, 2), Axis("b", 2, 1))
    assert cutting_problem((16,), (fold, Shard(0, outer=4)), mesh) == ""
    assert cutting_problem((16,), (fold, Shard(0)), mesh) == cutting_problem((16,), (Shard(0), fold), mesh) == ""
    # Each of four quarters is a piece: what another axis takes of halves goes through two of them.
    assert cutting_problem((16,), (fold, Shard(0, outer=2)), mesh) == (
        "S(0, folded) on a=2@2 and S(0, outer=2) on b=2@1, which do not nest"
    )
    assert cutting_problem((16,), (Shard(0), Shard(0, outer=2)), mesh) == ""
    assert "16 elements do not divide into 6 pieces" in cutting_problem((16,), (fold,), (Axis("a", 3, 1),))
    assert contiguous((fold, Shard(0, outer=2)), (OUTER, INNER)) == (fold, Shard(0, outer=2))
    assert contiguous((Shard(0), Shard(0, outer=2, folded=True)), (OUTER, INNER))[1] != Shard(0)


SHARDS = [Shard(d, n, folded=folded) for d in (0, 1) for n in (1, 2, 3, 4, 6, 12) for folded in (False, True)]


@settings(max_examples=150, deadline=None)
@given(
    sizes=st.sampled_from([(2,), (3,), (4,), (2, 2), (2, 3), (3, 2), (4, 2), (2, 2, 2)]),
    choices=st.tuples(*[st.sampled_from([REPLICATE, BROADCAST, *SHARDS])] * 3),
)
def test_slices_of_any_layout_make_up_the_whole(sizes: tuple[int, ...], choices: Layout) -> None:
    """Where there are slices at all, their shapes are the local ones, ranks that replicate agree, nothing is missing;
    and cutting along one axis after the other, inner factors first, gives the same."""
    mesh, layout, shape = mesh_of(*sizes), choices[: len(sizes)], (48, 72)
    if cutting_problem(shape, layout, mesh):
        return
    whole = torch.arange(48 * 72).view(shape)
    parts = distribute(whole, layout, mesh)
    assert {tuple(part.shape) for part in parts} == {local_shape(shape, layout, mesh)}
    assert torch.equal(combine(parts, layout, mesh, shape), whole)
    order = sorted((i for i, p in enumerate(layout) if isinstance(p, Shard)), key=lambda i: -outer_of(layout[i]))
    for rank, part in enumerate(parts):
        own = whole
        for done, i in enumerate(order):
            so_far = tuple(p if j in order[: done + 1] else REPLICATE for j, p in enumerate(layout))
            place = layout[i]
            assert isinstance(place, Shard)
            outer = local_outer(so_far, mesh, i)
            assert isinstance(outer, int)
            taken = rt.Sharded(place.dim, outer, folded=place.folded).split(own, mesh[i].size)
            own = taken[coordinate(mesh[i], rank)]
        assert torch.equal(own, part)


def outer_of(placement: Placement) -> int:
    assert isinstance(placement, Shard) and isinstance(placement.outer, int)
    return placement.outer
