"""Layouts: what a padded shard is, and where there is none."""

from __future__ import annotations

import pytest

from galvatron.errors import GalvatronError
from galvatron.ir.layout import BROADCAST, Axis, Shard, global_shape, local_shape, padded_part

DP, TP = Axis("dp", 2, 4), Axis("tp", 4, 1)


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
