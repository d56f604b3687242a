"""The table of collectives: its entries agree with one another and with what a rank has of a value."""

from __future__ import annotations

from itertools import product

import pytest

from galvatron.ir.collectives import COLLECTIVES, Collective, Keywords, Move, conversion, conversion_of, kind
from galvatron.ir.graph import Arg, Op
from galvatron.ir.layout import BROADCAST, PARTIAL, REPLICATE, Placement, Shard, dual

PLACEMENTS: tuple[Placement, ...] = (REPLICATE, BROADCAST, PARTIAL, Shard(0), Shard(1, folded=True))
EVERY = [(collective, move) for collective in COLLECTIVES.values() for move in collective.moves]
TOLD: dict[str, Arg] = {"dim": 1, "outer": 4, "folded": True}


def named(value: object) -> str:
    return value.name if isinstance(value, Collective) else str(value)


def told(move: Move) -> Keywords:
    """What any collective may be told about the shards before and after, and about its gradient."""
    shards = {f"{prefix}{name}": value for prefix in ("", "split_", "concat_") for name, value in TOLD.items()}
    return {"axis": "x", **shards, "grad": move.grad}


def test_one_conversion_from_every_placement_to_every_other() -> None:
    for source, target in product(PLACEMENTS, repeat=2):
        found = conversion(source, target)
        if found is None:
            assert source == target or (source, target) == (BROADCAST, PARTIAL)
        else:
            assert (found.move.source, found.move.target) == (kind(source), kind(target))


@pytest.mark.parametrize(("collective", "move"), EVERY, ids=named)
def test_keywords_tell_the_placements(collective: Collective, move: Move) -> None:
    for placement, expected in zip(collective.ends(told(move)), (move.source, move.target), strict=True):
        assert kind(placement) == expected
        assert expected != "S" or placement == Shard(1, 4, folded=True)
    assert tuple(dict(collective.written(told(move)))) == (*collective.keywords, *collective.flags)


@pytest.mark.parametrize(("collective", "move"), EVERY, ids=named)
def test_what_ranks_do_not_have_is_sent(collective: Collective, move: Move) -> None:
    """Of a sum a rank has a term, of slices its own; a term of a sum it can always make of what it has."""
    lacks = move.source == "P" or (move.source == "S" and move.target != "P")
    assert (collective.sends is not None) == lacks


@pytest.mark.parametrize(("collective", "move"), EVERY, ids=named)
def test_the_gradient_is_converted_between_the_duals(collective: Collective, move: Move) -> None:
    found = conversion_of(Op(collective.target, (), collective.written(told(move)), ()))
    before, after = collective.ends(told(move))
    back = conversion(dual(after), dual(before)) or found  # an exchange of equal slices goes back as it came
    assert found.backward == back.forward
    assert move.grad in (None, "identity", back.collective.name)
    assert collective.gradients or len(collective.moves) == 1
