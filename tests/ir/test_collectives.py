"""The table of collectives: its entries agree with one another and with what a rank has of a value."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest

from galvatron.ir.collectives import (
    COLLECTIVES,
    ROUTED,
    Conversion,
    Keywords,
    conversion,
    conversion_of,
    ends,
    shard_keywords,
)
from galvatron.ir.graph import Op, Ref
from galvatron.ir.layout import BROADCAST, PARTIAL, REPLICATE, Placement, Shard, dual

PLACEMENTS: tuple[Placement, ...] = (REPLICATE, BROADCAST, PARTIAL, Shard(0), Shard(1, folded=True), ROUTED)
FOUND = {(f.source, f.target): f for pair in product(PLACEMENTS, repeat=2) if (f := conversion(*pair))}
EVERY = pytest.mark.parametrize("row", FOUND.values(), ids=lambda row: f"{row.source}-{row.target}")
SHARDS = {"": Shard(1, 4, folded=True), "split_": Shard(2, 8, folded=True), "concat_": Shard(0, 2, folded=True)}


def op_of(row: Conversion) -> Op:
    """The op, with what any may be told about shards."""
    told: Keywords = {"axis": "x", "grad": row.grad, "by": Ref("ids"), "size": 4}
    for prefix, shard in SHARDS.items():
        told |= shard_keywords(shard, shard.outer, prefix)
    return Op(row.collective.target, (), row.collective.written(told), ())


def test_one_conversion_from_every_placement_to_every_other() -> None:
    for source, target in product(PLACEMENTS, repeat=2):
        if found := conversion(source, target):
            for placement, expected in ((found.source, source), (found.target, target)):
                assert placement == expected or (isinstance(placement, Shard) and isinstance(expected, Shard))
        else:
            assert source == target or (source, target) == (BROADCAST, PARTIAL) or ROUTED in (source, target)
    assert FOUND.keys() == {way for collective in COLLECTIVES.values() for way in collective.ways}


@EVERY
def test_an_op_tells_its_placements(row: Conversion) -> None:
    assert conversion_of(op_of(row)) == row
    both = isinstance(row.source, Shard) and isinstance(row.target, Shard) and not row.collective.routes
    before, after = (SHARDS[prefix if both else ""] for prefix in ("concat_", "split_"))
    if row.collective.routes:
        rows = replace(SHARDS[""], folded=False)
        before, after = (replace(rows, by="ids" if end == ROUTED else "") for end in (row.source, row.target))
    assert ends(op_of(row)) == (
        before if isinstance(row.source, Shard) else row.source,
        after if isinstance(row.target, Shard) else row.target,
    )


@EVERY
def test_what_ranks_do_not_have_is_sent(row: Conversion) -> None:
    """Of a sum a rank has a term, of slices its own; a term of a sum it can always make of what it has."""
    lacks = row.source == PARTIAL or (isinstance(row.source, Shard) and row.target != PARTIAL)
    assert (row.forward is not None) == lacks


@EVERY
def test_the_gradient_is_converted_between_the_duals(row: Conversion) -> None:
    before, after = ends(op_of(row))
    back = conversion(dual(after), dual(before))
    assert back is not None
    assert row.backward == back.forward
    assert row.grad in (None, "identity", back.collective.name)
    assert row.grad or len(row.collective.ways) == 1
