"""Boxes of the parts of all ranks: each has what the cuts leave its rank, and together they are the whole once."""

from __future__ import annotations

import math
import random
from typing import Any, cast

import pytest
import torch

from galvatron import runtime as rt
from galvatron.runtime.boxes import Box, patches_of
from galvatron.runtime.stage import StateSpec
from tests.marks import some_slow


def axis(size: int, index: int, stride: int) -> rt.Axis:
    return rt.Axis(size, stride, index, cast(Any, None))


def pieces(shape: tuple[int, ...], cuts: list[tuple[int, rt.Sharded]], ways: int) -> list[rt.Piece]:
    """The parts of all ranks: each slice in as many ranges as there are ways."""
    found: list[rt.Piece] = []
    for number in range(math.prod(size for size, _ in cuts)):
        places = []
        for stride, (size, place) in enumerate(cuts):
            places.append((axis(size, number % size, stride), place))
            number //= size
        spec = StateSpec("x", shape, torch.float64, tuple(places), "parameter")
        borders = sorted(random.choices(range(spec.local_numel + 1), k=ways - 1))
        for begin, end in zip([0, *borders], [*borders, spec.local_numel], strict=True):
            found.append(rt.Piece("x", "x", spec, torch.empty(end - begin), begin, end))
    return found


CASES: list[tuple[tuple[int, ...], list[tuple[int, rt.Sharded]]]] = [
    ((), []),
    ((7,), []),
    ((5, 6, 4), []),
    ((12, 5), [(2, rt.Sharded(0))]),
    ((5, 12), [(2, rt.Sharded(1, outer=3))]),
    ((24, 4), [(2, rt.Sharded(0, folded=True))]),
    ((24, 4), [(2, rt.Sharded(0, outer=3)), (2, rt.Sharded(0))]),
    ((13, 3), [(4, rt.Sharded(0, padded=True))]),
    ((2, 3), [(4, rt.Sharded(0, padded=True))]),
    ((8, 12), [(2, rt.Sharded(0)), (2, rt.Sharded(1, outer=3))]),
    ((0, 3), []),
]


@pytest.mark.parametrize("seed", some_slow(range(3), range(20)))
@pytest.mark.parametrize(("shape", "cuts"), CASES)
def test_parts_of_all_ranks_are_the_whole(shape: tuple[int, ...], cuts: list[Any], seed: int) -> None:
    random.seed(seed)
    whole = torch.arange(1, math.prod(shape) + 1, dtype=torch.float64).view(shape)
    everything = Box((0,) * len(shape), shape)
    seen = torch.zeros_like(whole)
    for piece in pieces(shape, cuts, ways=1 + seed % 4):
        own = piece.spec.shard(whole).reshape(-1)[piece.begin : piece.end]
        rebuilt = torch.zeros_like(own)
        for patch in patches_of(piece):
            part = everything.cut(whole, patch.box)
            assert torch.equal(patch.of(own), part)
            patch.of(rebuilt).copy_(part)
            everything.cut(seen, patch.box).add_(1)
        assert torch.equal(rebuilt, own)
    assert torch.equal(seen, torch.ones_like(whole))


def test_boxes_meet_in_what_both_have() -> None:
    assert Box((0, 2), (4, 4)).meet(Box((3, 0), (2, 3))) == Box((3, 2), (1, 1))
    assert Box((0, 0), (2, 2)).meet(Box((2, 0), (2, 2))) is None
    assert Box((), ()).meet(Box((), ())) == Box((), ())
