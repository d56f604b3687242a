"""Layouts: what a padded shard is, and where there is none."""

from __future__ import annotations

import pytest

from galvatron.errors import GalvatronError
from galvatron.ir.layout import (
    BROADCAST,
    REPLICATE,
    Axis,
    Shard,
    contiguous,
    global_shape,
    joined_layout,
    local_shape,
    nameable_axes,
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
        assert TP.coordinate(rank) == 2 * OUTER.coordinate(rank) + INNER.coordinate(rank)


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
