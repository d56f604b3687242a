"""The collectives of a sharded graph: ops `comm.*` that take one value from one placement to another on one mesh axis.

What the compiler knows of one is its entry here: between which placements it leads, and what crosses the network for
it. All else follows: its arguments, the shape of its result, the collective that its backward is (the one that leads
back between the duals of its placements), what selective recomputation keeps, what it costs, and how it is written. The
function of the same name in `runtime.collectives` does it.

The first argument is the value, `axis` the name of an axis of the class mesh; all keyword arguments are always written,
except for flags, which are written where they are true. `outer` sees a dimension of the local tensor as `(outer, n,
rest)`, of which the axis splits or joins `n`; `folded` says that it does so in folded slices.

Before rows are first sent by what a value chooses, ranks tell each other how many go where. With `also`, a list of
values that are made by then and by which others will be sent on the axis, they tell each other of these as well.

A collective that is `started` is only begun where it stands. Its result is under way until `comm.wait`, the only op
that may read it, gives it; what stands between the two runs beside it. In the backward it is the other way round: the
gradient's collective is begun where the wait stands, and waited for where the start stands.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import sympy

from galvatron.ir.graph import Arg, Op, Ref, walk_refs
from galvatron.ir.layout import BROADCAST, PARTIAL, REPLICATE, Placement, Shard, dual, is_routed, same_factor
from galvatron.ir.types import Dim, exact_quotient

Keywords = dict[str, Arg]

SHARD = Shard(0)
"""Stands for any shard that is a slice."""

ROUTED = Shard(0, by="ids")
"""Stands for any shard of rows by what they choose."""


@dataclass(frozen=True)
class Message:
    """What crosses the network for a collective on an axis of `n` ranks.

    `way` is to whom a rank sends what: to the next one of a `ring` an n-th of the payload at a time, along a `chain`
    all of it, to `each` other one an n-th, or to a `peer` all of it. The payload is the whole tensor as one rank sees
    it, before or after. `rounds` is how often the value goes round the axis (in an exchange of shards about half of it
    does), `buffers` in how many tensors of the payload's size the parts of the ranks are laid out one by one. What is
    `summed` in place is a copy, since others may hold the value.
    """

    way: Literal["ring", "chain", "each", "peer"]
    rounds: float = 1.0
    buffers: int = 0
    summed: bool = False


@dataclass(frozen=True)
class Collective:
    """One kind of collective: its ways from a placement to another, and what crosses the network, if anything does.

    `grad` tells several ways apart: it names what happens to the gradient. What crosses the network is a `message` of
    its own, or `sends` that of another.
    """

    name: str
    ways: dict[tuple[Placement, Placement], str | None]
    message: Message | None = None
    sends: str = ""

    @property
    def target(self) -> str:
        """What an op calls."""
        return f"comm.{self.name}"

    @cached_property
    def gradients(self) -> tuple[str, ...]:
        """What `grad` may be; empty where it has no such keyword."""
        return tuple(filter(None, self.ways.values()))

    @cached_property
    def shards(self) -> tuple[str, ...]:
        """How the keywords begin that tell a shard: first the one after, last the one before."""
        if (SHARD, SHARD) in self.ways:
            return "split_", "concat_"
        if self.routes:
            return ("",)
        return ("",) if any(SHARD in way for way in self.ways) else ()

    @cached_property
    def keywords(self) -> tuple[str, ...]:
        """Its keyword arguments, less flags, in order."""
        told = (f"{prefix}{name}" for prefix in self.shards for name in ("dim", "outer"))
        return ("axis", *told, *(("by", "size") if self.routes else ()), *(("grad",) if self.gradients else ()))

    @cached_property
    def flags(self) -> tuple[str, ...]:
        """Its flags, which follow the other keywords."""
        folded = () if self.routes else tuple(f"{prefix}folded" for prefix in self.shards)
        return (*folded, STARTED) if self.sent else folded

    @property
    def sent(self) -> str:
        """What crosses the network, as in `MESSAGES`; empty where nothing does."""
        return self.sends or (self.name if self.message else "")

    @cached_property
    def routes(self) -> bool:
        """Whether it sends rows by what they choose: `by` is that value, and `size` among how many it chooses."""
        return any(ROUTED in way for way in self.ways)

    @property
    def optional(self) -> tuple[str, ...]:
        """Keyword arguments that are written where they say anything, behind `keywords`."""
        return (ALSO,) if (SHARD, ROUTED) in self.ways else ()

    def written(self, keywords: Keywords) -> tuple[tuple[str, Arg], ...]:
        """Those of the keywords that it has, in its order."""
        return tuple((name, keywords[name]) for name in (*self.keywords, *self.flags) if name in keywords)


ALSO = "also"
"""The values besides `by` of which ranks tell each other how many rows go where."""

STARTED = "started"
"""The flag of a collective whose result is waited for later."""

_KINDS = (
    Collective("wait", {}),
    Collective("copy", {(REPLICATE, BROADCAST): None}),
    Collective(
        "all_reduce",
        {(PARTIAL, REPLICATE): "identity", (PARTIAL, BROADCAST): "all_reduce"},
        Message("ring", rounds=2.0, summed=True),
    ),
    Collective(
        "all_gather",
        {(SHARD, REPLICATE): "slice", (SHARD, BROADCAST): "reduce_scatter"},
        Message("ring", buffers=1),
    ),
    Collective("reduce_scatter", {(PARTIAL, SHARD): None}, Message("ring", buffers=1)),
    Collective("slice", {(REPLICATE, SHARD): "all_gather", (BROADCAST, SHARD): "pad"}),
    Collective("all_to_all", {(SHARD, SHARD): None}, Message("each", rounds=0.5, buffers=2)),
    Collective("dispatch", {(SHARD, ROUTED): None}, sends="all_to_all"),
    Collective("combine", {(ROUTED, SHARD): None}, sends="all_to_all"),
    Collective("first", {(REPLICATE, PARTIAL): "identity", (BROADCAST, REPLICATE): "first"}),
    Collective("pad", {(SHARD, PARTIAL): None}),
)

COLLECTIVES: dict[str, Collective] = {collective.target: collective for collective in _KINDS}
"""Every collective, by what an op calls."""

MESSAGES: dict[str, Message] = {c.name: c.message for c in _KINDS if c.message} | {
    "broadcast": Message("chain"),
    "p2p": Message("peer"),
}
"""What may cross the network: the message of each collective by its name, what one rank sends to all others of a group,
and what it sends to one of them."""

LIBRARY_COPIES: dict[str, dict[str, float]] = {"cpu": {"all_gather": 1.0, "reduce_scatter": 1.0}}
"""By kind of device and collective, how many tensors of the payload's size its library takes until it was waited for:
gloo lays out what it gathers in memory of its own, and sums parts in a copy of all of them."""


WAIT = "comm.wait"
"""Gives the result of a collective that was started. It leads nowhere, and nothing crosses the network for it."""


def is_started(op: Op) -> bool:
    """Whether the result of an op is under way, and has to be waited for."""
    return op.namespace == "comm" and op.kwarg(STARTED) is True


def sent_by(op: Op) -> tuple[str, ...]:
    """The values by which rows are sent that ranks know of behind an op that sends some; none for other ops."""
    by, also = (op.kwarg("by"), op.kwarg(ALSO, ())) if op.namespace == "comm" else (None, ())
    return tuple(ref.name for ref in walk_refs((by, also)))


@dataclass(frozen=True)
class Conversion:
    """One way of a collective, with its `grad`."""

    collective: Collective
    source: Placement
    target: Placement
    grad: str | None

    @property
    def forward(self) -> str | None:
        """The message that it sends forward, as in `MESSAGES`; None where nothing crosses the network."""
        return self.collective.sent or None

    @property
    def backward(self) -> str | None:
        """The message that it sends backward: that of the conversion between the duals."""
        return _CONVERSIONS[dual(self.target), dual(self.source)].forward


_CONVERSIONS = {way: Conversion(c, *way, grad) for c in _KINDS for way, grad in c.ways.items()}

CONVERSIONS = tuple(_CONVERSIONS.values())
"""The conversion table."""


def conversion(source: Placement, target: Placement) -> Conversion | None:
    """What converts on one axis, or None where nothing is to be done or no single op does it: `R' → P`, and whatever
    leads from or to a padded shard."""
    if source == target or any(isinstance(p, Shard) and p.padded for p in (source, target)):
        return None
    if (is_routed(source) or is_routed(target)) and not same_factor(source, target):
        return None
    return _CONVERSIONS.get((_kind(source), _kind(target)))


def conversion_of(op: Op) -> Conversion:
    """What a collective op does."""
    grad, ways = op.kwarg("grad"), COLLECTIVES[op.target].ways
    return next(_CONVERSIONS[way] for way in ways if ways[way] == grad)


def ends(op: Op) -> tuple[Placement, Placement]:
    """The placements that a collective op leads from and to; `outer` counts slices of the local tensor."""
    found, told = conversion_of(op), [_shard(dict(op.kwargs), prefix) for prefix in COLLECTIVES[op.target].shards]
    by = op.kwarg("by")

    def placement(kind: Placement, shard: Shard | None) -> Placement:
        if shard is None or not isinstance(kind, Shard):
            return kind
        return replace(shard, by=by.name) if kind == ROUTED and isinstance(by, Ref) else shard

    before, after = (told[-1], told[0]) if told else (None, None)
    return placement(found.source, before), placement(found.target, after)


def copies(op: Op) -> tuple[float, float]:
    """How often a collective op copies its payload, forward and backward, beside what it sends: a sum is of a copy, and
    the parts of a dimension that is not the first are laid one behind the other before they are sent, and back in their
    places when they have come. What sends nothing counts as no copy."""
    way, laid = conversion_of(op), sum(map(_is_laid_out, ends(op)))

    def of(message: str | None) -> float:
        return 0.0 if message is None else float(laid + MESSAGES[message].summed)

    return of(way.forward), of(way.backward)


def _is_laid_out(placement: Placement) -> bool:
    """Whether the parts of a value do not lie one behind the other in it already."""
    return isinstance(placement, Shard) and replace(placement, padded=False) != SHARD


def _kind(placement: Placement) -> Placement:
    if isinstance(placement, Shard):
        return ROUTED if placement.by else SHARD
    return placement


def shard_keywords(shard: Shard, outer: Dim, prefix: str) -> Keywords:
    """The keywords by which a collective tells a shard; `outer` counts slices of the local tensor."""
    told: Keywords = {f"{prefix}dim": shard.dim, f"{prefix}outer": outer}
    return told | {f"{prefix}folded": True} if shard.folded else told


def keywords_of(
    way: Conversion, source: Placement, target: Placement, axis: str, choosing: Keywords | None = None
) -> tuple[tuple[str, Arg], ...]:
    """The keyword arguments of the op that leads from one placement to another; `outer` of both counts slices of the
    local tensor, and `choosing` says by what rows are sent, and among how many that chooses."""
    told: Keywords = {"axis": axis, "grad": way.grad} | (choosing or {})
    for placement, which in ((source, -1), (target, 0)):
        if isinstance(placement, Shard):
            told |= shard_keywords(placement, placement.outer, way.collective.shards[which])
    return way.collective.written(told)


def _shard(keywords: Keywords, prefix: str) -> Shard:
    index, factor, folded = (keywords.get(f"{prefix}{name}") for name in ("dim", "outer", "folded"))
    assert isinstance(index, int) and not isinstance(factor, (str, tuple, float, bool)) and factor is not None
    return Shard(index, factor, folded=folded is True)  # type: ignore[arg-type]  # a Dim by the assertion above


def result_shape(op: Op, shape: tuple[Dim, ...], axis_size: int) -> tuple[Dim, ...]:
    """The local shape after a collective op on an axis of `axis_size` ranks; one that does not divide stays a
    fraction."""
    local = list(shape)
    if COLLECTIVES[op.target].routes or op.target == WAIT:
        return shape
    before, after = ends(op)
    if isinstance(after, Shard):
        size = local[after.dim]
        local[after.dim] = exact_quotient(size, axis_size) or sympy.sympify(size) / axis_size
    if isinstance(before, Shard):
        local[before.dim] = local[before.dim] * axis_size
    return tuple(local)
