"""The table of collectives: its entries agree with one another and with what a rank has of a value."""

from __future__ import annotations

from itertools import product

import pytest

from galvatron.ir.collectives import COLLECTIVES, Conversion, conversion, conversion_of, ends
from galvatron.ir.graph import Arg, Op
from galvatron.ir.layout import BROADCAST, PARTIAL, REPLICATE, Placement, Shard, dual

PLACEMENTS: tuple[Placement, ...] = (REPLICATE, BROADCAST, PARTIAL, Shard(0), Shard(1, folded=True))
FOUND = {(f.source, f.target): f for pair in product(PLACEMENTS, repeat=2) if (f := conversion(*pair))}
EVERY = pytest.mark.parametrize("row", FOUND.values(), ids=lambda row: f"{row.source}-{row.target}")
TOLD: dict[str, Arg] = {"dim": 1, "outer": 4, "folded": True}


def op_of(row: Conversion) -> Op:
    """The op, with what any may be told about shards."""
    told = {f"{prefix}{name}": value for prefix in ("", "split_", "concat_") for name, value in TOLD.items()}
    collective = row.collective
    return Op(collective.target, (), collective.written({"axis": "x", **told, "grad": row.grad}), ())


def test_one_conversion_from_every_placement_to_every_other() -> None:
    for source, target in product(PLACEMENTS, repeat=2):
        if found := conversion(source, target):
            assert (type(found.source), type(found.target)) == (type(source), type(target))
        else:
            assert source == target or (source, target) == (BROADCAST, PARTIAL)
    assert FOUND.keys() == {way for collective in COLLECTIVES.values() for way in collective.ways}


@EVERY
def test_an_op_tells_its_placements(row: Conversion) -> None:
    assert conversion_of(op_of(row)) == row
    for placement, expected in zip(ends(op_of(row)), (row.source, row.target), strict=True):
        assert placement == (Shard(1, 4, folded=True) if isinstance(expected, Shard) else expected)


@EVERY
def test_what_ranks_do_not_have_is_sent(row: Conversion) -> None:
    """Of a sum a rank has a term, of slices its own; a term of a sum it can always make of what it has."""
    lacks = row.source == PARTIAL or (isinstance(row.source, Shard) and row.target != PARTIAL)
    assert (row.forward is not None) == lacks


@EVERY
def test_the_gradient_is_converted_between_the_duals(row: Conversion) -> None:
    before, after = ends(op_of(row))
    back = conversion(dual(after), dual(before)) or row  # an exchange of equal slices goes back as it came
    assert row.backward == back.forward
    assert row.grad in (None, "identity", back.collective.name)
    assert row.grad or len(row.collective.ways) == 1
