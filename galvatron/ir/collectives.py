"""The collectives of a sharded graph: ops `comm.*` that take one value from one placement to another on one mesh axis.

Their first argument is the value, `axis` the name of an axis of the class mesh; all keyword arguments are always
written, in the order of this table, except for flags, which are written where they are true. `outer` sees a dimension
of the local tensor as `(outer, n, rest)`, of which the axis splits or joins `n`; `folded` says that it does so in
folded slices.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import sympy

from galvatron.ir.graph import Arg
from galvatron.ir.layout import BROADCAST, PARTIAL, REPLICATE, Placement, Shard
from galvatron.ir.types import Dim

Keywords = dict[str, Arg]


@dataclass(frozen=True)
class Collective:
    """One kind of collective: its keyword arguments, and the placements it leads from and to, given those arguments.

    `dims` are the (dimension keyword, factor) pairs of the local shape: +1 where it grows by the axis size, -1 where it
    shrinks. `flags` follow the other keywords.
    """

    keywords: tuple[str, ...]
    source: Callable[[Keywords], Placement]
    target: Callable[[Keywords], Placement]
    dims: tuple[tuple[str, int], ...] = ()
    gradients: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()

    def written(self, keywords: Keywords) -> tuple[tuple[str, Arg], ...]:
        """Those of the keywords that it has, in its order."""
        return tuple((name, keywords[name]) for name in (*self.keywords, *self.flags) if name in keywords)


def _shard(keywords: Keywords, prefix: str = "") -> Shard:
    index, factor, folded = (keywords.get(f"{prefix}{name}") for name in ("dim", "outer", "folded"))
    assert isinstance(index, int) and not isinstance(factor, (str, tuple, float, bool)) and factor is not None
    return Shard(index, factor, folded=folded is True)  # type: ignore[arg-type]  # a Dim by the assertion above


def shard_keywords(shard: Shard, outer: Dim, prefix: str = "") -> Keywords:
    """The keywords by which a collective tells a shard; `outer` counts slices of the local tensor."""
    told: Keywords = {f"{prefix}dim": shard.dim, f"{prefix}outer": outer}
    return told | {f"{prefix}folded": True} if shard.folded else told


def _by_grad(**placements: Placement) -> Callable[[Keywords], Placement]:
    return lambda keywords: placements[str(keywords["grad"])]


COLLECTIVES: dict[str, Collective] = {
    "comm.copy": Collective(("axis",), lambda k: REPLICATE, lambda k: BROADCAST),
    "comm.all_reduce": Collective(
        ("axis", "grad"), lambda k: PARTIAL, _by_grad(identity=REPLICATE, all_reduce=BROADCAST),
        gradients=("identity", "all_reduce"),
    ),
    "comm.all_gather": Collective(
        ("axis", "dim", "outer", "grad"), _shard, _by_grad(slice=REPLICATE, reduce_scatter=BROADCAST),
        (("dim", 1),), ("slice", "reduce_scatter"), flags=("folded",),
    ),
    "comm.reduce_scatter": Collective(
        ("axis", "dim", "outer"), lambda k: PARTIAL, _shard, (("dim", -1),), flags=("folded",),
    ),
    "comm.slice": Collective(
        ("axis", "dim", "outer", "grad"), _by_grad(all_gather=REPLICATE, pad=BROADCAST), _shard,
        (("dim", -1),), ("all_gather", "pad"), flags=("folded",),
    ),
    "comm.all_to_all": Collective(
        ("axis", "split_dim", "split_outer", "concat_dim", "concat_outer"),
        lambda k: _shard(k, "concat_"), lambda k: _shard(k, "split_"),
        (("split_dim", -1), ("concat_dim", 1)), flags=("split_folded", "concat_folded"),
    ),
    "comm.first": Collective(
        ("axis", "grad"), _by_grad(identity=REPLICATE, first=BROADCAST), _by_grad(identity=PARTIAL, first=REPLICATE),
        gradients=("identity", "first"),
    ),
    "comm.pad": Collective(("axis", "dim", "outer"), _shard, lambda k: PARTIAL, (("dim", 1),), flags=("folded",)),
}  # fmt: skip
"""Every collective by op name; the adjoint of each is implied by the duals of its placements."""


def result_shape(collective: Collective, keywords: Keywords, shape: tuple[Dim, ...], axis_size: int) -> tuple[Dim, ...]:
    """The local shape after a collective on an axis of `axis_size` ranks; one that does not divide stays a fraction."""
    local = list(shape)
    for name, direction in collective.dims:
        dim = keywords[name]
        assert isinstance(dim, int)
        local[dim] = local[dim] * axis_size if direction > 0 else _quotient(local[dim], axis_size)
    return tuple(local)


def _quotient(dim: Dim, size: int) -> Dim:
    if isinstance(dim, int) and dim % size == 0:
        return dim // size
    return sympy.sympify(dim) / size
