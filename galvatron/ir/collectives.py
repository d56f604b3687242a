"""The collectives of a sharded graph: ops `comm.*` that take one value from one placement to another on one mesh axis.

What the compiler knows of one is its entry here: between which placements it leads, and what crosses the network for
it. All else follows: its arguments, the shape of its result, the collective that its backward is (the one that leads
back between the duals of its placements), what selective recomputation keeps, what it costs, and how it is written. The
function of the same name in `runtime.collectives` does it.

The first argument is the value, `axis` the name of an axis of the class mesh; all keyword arguments are always written,
except for flags, which are written where they are true. `outer` sees a dimension of the local tensor as `(outer, n,
rest)`, of which the axis splits or joins `n`; `folded` says that it does so in folded slices.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import sympy

from galvatron.ir.graph import Arg, Op
from galvatron.ir.layout import BROADCAST, PARTIAL, REPLICATE, Placement, Shard, dual
from galvatron.ir.types import Dim

Keywords = dict[str, Arg]
Kind = Literal["R", "R'", "P", "S"]
"""A kind of placement."""


@dataclass(frozen=True)
class Message:
    """What crosses the network for a collective on an axis of `n` ranks.

    `way` is to whom a rank sends what: to the next one of a `ring` an n-th of the payload at a time, to `each` other
    one an n-th, or to a `peer` all of it. The payload is the whole tensor as one rank sees it, before or after.
    `rounds` is how often the value goes round the axis (in an exchange of shards about half of it does), `buffers` in
    how many tensors of the payload's size the parts of the ranks are laid out one by one.
    """

    way: Literal["ring", "each", "peer"]
    rounds: float = 1.0
    buffers: int = 0


@dataclass(frozen=True)
class Move:
    """One thing that a collective may be: from one kind of placement to another. `grad` names what then happens to the
    gradient, where several moves are to be told apart."""

    source: Kind
    target: Kind
    grad: str | None = None


@dataclass(frozen=True)
class Collective:
    """One kind of collective; without a message it stays on the device."""

    name: str
    moves: tuple[Move, ...]
    message: Message | None = None

    @property
    def target(self) -> str:
        """What an op calls."""
        return f"comm.{self.name}"

    @property
    def sends(self) -> str | None:
        """The message that it sends, as in `MESSAGES`; None where nothing crosses the network."""
        return self.name if self.message else None

    @cached_property
    def gradients(self) -> tuple[str, ...]:
        """What `grad` may be; empty where it has no such keyword."""
        return tuple(move.grad for move in self.moves if move.grad is not None)

    @cached_property
    def exchanges(self) -> bool:
        """Whether there is a shard before and after, so that no rank ever has more."""
        return all(move.source == move.target == "S" for move in self.moves)

    @cached_property
    def prefixes(self) -> tuple[str, str]:
        """How the keywords that tell the shard before and the shard after begin."""
        return ("concat_", "split_") if self.exchanges else ("", "")

    @cached_property
    def dims(self) -> tuple[tuple[str, int], ...]:
        """The (prefix, direction) of each dimension of the local shape that changes: +1 where it grows by the axis
        size, -1 where it shrinks."""
        before, after = self.prefixes
        shrinks = ((after, -1),) if any(move.target == "S" for move in self.moves) else ()
        return (*shrinks, (before, 1)) if any(move.source == "S" for move in self.moves) else shrinks

    @cached_property
    def keywords(self) -> tuple[str, ...]:
        """Its keyword arguments, less flags, in order."""
        told = (f"{prefix}{name}" for prefix, _ in self.dims for name in ("dim", "outer"))
        return ("axis", *told, *(("grad",) if self.gradients else ()))

    @cached_property
    def flags(self) -> tuple[str, ...]:
        """Its flags, which follow the other keywords."""
        return tuple(f"{prefix}folded" for prefix, _ in self.dims)

    def written(self, keywords: Keywords) -> tuple[tuple[str, Arg], ...]:
        """Those of the keywords that it has, in its order."""
        return tuple((name, keywords[name]) for name in (*self.keywords, *self.flags) if name in keywords)

    def move(self, keywords: Keywords) -> Move:
        """What it is, given its keywords."""
        return next(move for move in self.moves if move.grad == (keywords["grad"] if self.gradients else None))

    def ends(self, keywords: Keywords) -> tuple[Placement, Placement]:
        """The placements that it leads from and to; `outer` counts slices of the local tensor."""
        move, (before, after) = self.move(keywords), self.prefixes
        return _placement(move.source, keywords, before), _placement(move.target, keywords, after)


COLLECTIVES: dict[str, Collective] = {
    collective.target: collective
    for collective in (
        Collective("copy", (Move("R", "R'"),)),
        Collective(
            "all_reduce",
            (Move("P", "R", grad="identity"), Move("P", "R'", grad="all_reduce")),
            Message("ring", rounds=2.0),
        ),
        Collective(
            "all_gather",
            (Move("S", "R", grad="slice"), Move("S", "R'", grad="reduce_scatter")),
            Message("ring", buffers=1),
        ),
        Collective("reduce_scatter", (Move("P", "S"),), Message("ring", buffers=1)),
        Collective("slice", (Move("R", "S", grad="all_gather"), Move("R'", "S", grad="pad"))),
        Collective("all_to_all", (Move("S", "S"),), Message("each", rounds=0.5, buffers=2)),
        Collective("first", (Move("R", "P", grad="identity"), Move("R'", "R", grad="first"))),
        Collective("pad", (Move("S", "P"),)),
    )
}
"""Every collective, by what an op calls."""

MESSAGES: dict[str, Message] = {c.name: c.message for c in COLLECTIVES.values() if c.message} | {"p2p": Message("peer")}
"""What may cross the network: the message of each collective by its name, and what one rank sends to another."""


@dataclass(frozen=True)
class Conversion:
    """What leads from one kind of placement to another: a collective in one of its moves."""

    collective: Collective
    move: Move

    @property
    def forward(self) -> str | None:
        """The message that it sends forward."""
        return self.collective.sends

    @property
    def backward(self) -> str | None:
        """The message that it sends backward: that of the conversion between the duals."""
        return _CONVERSIONS[_dual(self.move.target), _dual(self.move.source)].forward


_CONVERSIONS = {(move.source, move.target): Conversion(c, move) for c in COLLECTIVES.values() for move in c.moves}
_UNSHARDED: dict[Kind, Placement] = {"R": REPLICATE, "R'": BROADCAST, "P": PARTIAL}


def conversion(source: Placement, target: Placement) -> Conversion | None:
    """What converts on one axis, or None where nothing is to be done or no single op does it: `R' → P`, and whatever
    leads from or to a padded shard."""
    if source == target or any(isinstance(p, Shard) and p.padded for p in (source, target)):
        return None
    return _CONVERSIONS.get((kind(source), kind(target)))


def conversion_of(op: Op) -> Conversion:
    """What a collective op converts."""
    collective = COLLECTIVES[op.target]
    return Conversion(collective, collective.move(dict(op.kwargs)))


def kind(placement: Placement) -> Kind:
    """The kind of a placement."""
    if isinstance(placement, Shard):
        return "S"
    return next(name for name, other in _UNSHARDED.items() if other == placement)


def _dual(kind_: Kind) -> Kind:
    return "S" if kind_ == "S" else kind(dual(_UNSHARDED[kind_]))


def _placement(kind_: Kind, keywords: Keywords, prefix: str) -> Placement:
    if kind_ != "S":
        return _UNSHARDED[kind_]
    index, factor, folded = (keywords.get(f"{prefix}{name}") for name in ("dim", "outer", "folded"))
    assert isinstance(index, int) and not isinstance(factor, (str, tuple, float, bool)) and factor is not None
    return Shard(index, factor, folded=folded is True)  # type: ignore[arg-type]  # a Dim by the assertion above


def shard_keywords(shard: Shard, outer: Dim, prefix: str) -> Keywords:
    """The keywords by which a collective tells a shard; `outer` counts slices of the local tensor."""
    told: Keywords = {f"{prefix}dim": shard.dim, f"{prefix}outer": outer}
    return told | {f"{prefix}folded": True} if shard.folded else told


def result_shape(collective: Collective, keywords: Keywords, shape: tuple[Dim, ...], axis_size: int) -> tuple[Dim, ...]:
    """The local shape after a collective on an axis of `axis_size` ranks; one that does not divide stays a fraction."""
    local = list(shape)
    for prefix, direction in collective.dims:
        dim = keywords[f"{prefix}dim"]
        assert isinstance(dim, int)
        local[dim] = local[dim] * axis_size if direction > 0 else _quotient(local[dim], axis_size)
    return tuple(local)


def _quotient(dim: Dim, size: int) -> Dim:
    if isinstance(dim, int) and dim % size == 0:
        return dim // size
    return sympy.sympify(dim) / size
