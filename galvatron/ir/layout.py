"""Where a tensor lives on a device mesh, and where its gradient lives.

A placement describes a value *and* its gradient on one mesh axis, so the adjoint of every redistribution is part of the
type and never a matter of convention:

| placement | printed | the value on the axis | its gradient on the axis |
|---|---|---|---|
| `Replicate()` | `R` | equal on every rank | equal on every rank |
| `Replicate(partial_gradient=True)` | `R'` | equal on every rank | a partial sum: the ranks' gradients add up |
| `Partial()` | `P` | a partial sum | equal on every rank |
| `Shard(dim, outer)` | `S(dim)`, `S(dim, outer=n)` | a slice of `dim` | the same slice |
| `Shard(dim, folded=True)` | `S(dim, folded)` | a piece from the front and one from the back | the same slice |
| `Shard(dim, padded=True)` | `S(dim, padded)` | a slice of `dim`, the last with filler (`padding`) | the same slice |
| `Shard(dim, by=ids)` | `S(dim, by=%ids)` | the rows that choose something of this rank | the same rows |

`R'` and `P` are dual, `R` and `S` are their own duals. An op that runs sharded reads its unsharded operands as `R'`:
each rank contributes a part of their gradient. A parameter that ends up `R'` on an axis needs its gradient summed over
that axis once per step; that is how gradient synchronisation groups are derived.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from galvatron.errors import GalvatronError
from galvatron.ir.types import Dim, divides, exact_quotient, simplify_dim


@dataclass(frozen=True)
class Axis:
    """One mesh axis of a stage's device group: its name, its size, and the distance between neighbours on it.

    A rank's coordinate on the axis is `(rank // stride) % size`, with `rank` counted inside the stage. Axes of
    different strategies with equal size and stride are the same groups of ranks.

    An axis may be cut into nested sub-axes: `tp=4@1` into `tp.0=2@2` and `tp.1=2@1`, outermost first. A mesh has the
    sub-axes; collectives may name one of them, or all of them together by the name before the dot.
    """

    name: str
    size: int
    stride: int

    @property
    def parent(self) -> str:
        """The axis that a sub-axis is cut from, `tp` for `tp.0`; the own name of any other."""
        return self.name.partition(".")[0]

    def cut(self, size: int) -> tuple[Axis, Axis]:
        """The outermost sub-axis, of `size` ranks, and what is left: the last sub-axis, unless it is cut again."""
        name, _, number = self.name.partition(".")
        first = int(number or 0)
        left = self.size // size
        return Axis(f"{name}.{first}", size, self.stride * left), Axis(f"{name}.{first + 1}", left, self.stride)

    def __str__(self) -> str:
        return f"{self.name}={self.size}@{self.stride}"


@dataclass(frozen=True)
class Replicate:
    """The whole value on every rank; see the module table for its gradient."""

    partial_gradient: bool = False

    def __str__(self) -> str:
        return "R'" if self.partial_gradient else "R"


@dataclass(frozen=True)
class Partial:
    """Every rank holds a term of a sum."""

    def __str__(self) -> str:
        return "P"


@dataclass(frozen=True)
class Shard:
    """A slice of dimension `dim`, seen as `(outer, axis size, rest)`: the middle factor is split over the axis.

    `outer=1` is the ordinary contiguous chunk. A fused QKV projection split by heads is `Shard(0, outer=3)`, a
    flattened `(B·S, V)` split along the sequence is `Shard(0, outer=B)`. `outer` counts elements of the whole tensor,
    whatever other axes shard; two axes with equal `dim` and `outer` shard one factor, the outer mesh axis first.

    With `folded` the middle factor is cut into twice as many pieces as there are ranks, and rank `i` of `n` has the
    pieces `i` and `2n - 1 - i`: under a causal mask such slices of a sequence mean equal work. What is folded on two
    nested axes is folded on both of them seen as one.

    `padded` is for a whole dimension that the axis does not divide: slices are rounded up, and the last rank's ends in
    filler. No collective takes such a shard anywhere, and no other axis shards its dimension.

    With `by` a rank has not the rows of a slice, but those of all ranks' slices for which the value of that name, whole
    numbers, chooses something that this rank has. How many these are is known at run time; the type says how many there
    are where all choose evenly, and there are no more than the axis has ranks times as many (`galvatron.ir.skew`).
    """

    dim: int
    outer: Dim = 1
    padded: bool = False
    folded: bool = False
    by: str = ""

    def pieces(self, size: int) -> int:
        """Into how many pieces an axis of `size` ranks cuts what it shards."""
        return 2 * size if self.folded else size

    def __str__(self) -> str:
        outer = "" if self.outer == 1 else f", outer={self.outer}"
        by = f", by=%{self.by}" if self.by else ""
        return f"S({self.dim}{outer}{', folded' * self.folded}{', padded' * self.padded}{by})"


Mesh = tuple[Axis, ...]
"""Axes, the outermost first."""

Placement = Replicate | Partial | Shard
Layout = tuple[Placement, ...]
"""One placement per mesh axis, outermost axis first."""

REPLICATE = Replicate()
BROADCAST = Replicate(partial_gradient=True)
PARTIAL = Partial()


def is_routed(placement: Placement) -> bool:
    """Whether a rank has rows by what they choose."""
    return isinstance(placement, Shard) and bool(placement.by)


def dual(placement: Placement) -> Placement:
    """The placement of the gradient of a value."""
    if placement == BROADCAST:
        return PARTIAL
    if placement == PARTIAL:
        return BROADCAST
    return placement


def same_factor(first: Placement, second: Placement) -> bool:
    """Whether two axes shard the same factor of the same dimension."""
    if not isinstance(first, Shard) or not isinstance(second, Shard):
        return False
    return (first.dim, first.outer) == (second.dim, second.outer)


def local_outer(layout: Layout, mesh: Mesh, position: int) -> Dim:
    """How many slices along its dimension the shard at `position` makes of the local tensor: `outer` less what other
    axes have taken of it."""
    shard = layout[position]
    assert isinstance(shard, Shard)
    outer: Dim = shard.outer
    for other, axis in zip(layout, mesh, strict=True):
        if not isinstance(other, Shard) or other.dim != shard.dim or other.outer == shard.outer:
            continue
        if exact_quotient(shard.outer, other.outer) is not None:
            outer = exact_quotient(outer, axis.size) or outer
    return outer


def local_placement(layout: Layout, mesh: Mesh, position: int) -> Placement:
    """The placement on one axis as the keywords of a collective tell it: `outer` counts slices of the local tensor."""
    placement = layout[position]
    if not isinstance(placement, Shard):
        return placement
    return replace(placement, outer=local_outer(layout, mesh, position))


def contiguous(layout: Layout, mesh: Mesh) -> Layout:
    """The layout with one spelling for what sub-axes cut: where one takes a factor whole and the next one cuts the
    factor inside it, both cut the two factors seen as one (key heads, then each one's query heads: all query heads)."""
    spelled: list[Placement] = []
    ways = 1
    for i, placement in enumerate(layout):
        outer = spelled[i - 1] if i and mesh[i].parent == mesh[i - 1].parent else None
        if not isinstance(placement, Shard) or not isinstance(outer, Shard) or not _could_be_one(placement, outer):
            ways = 1
        elif placement == layout[i - 1] or exact_quotient(placement.outer, outer.outer) == ways:
            placement = outer
        spelled.append(placement)
        ways *= mesh[i].size
    return tuple(spelled)


def _could_be_one(inner: Shard, outer: Shard) -> bool:
    return inner.dim == outer.dim and not inner.folded and not outer.folded


def cutting_problem(shape: tuple[Dim, ...], layout: Layout, mesh: Mesh) -> str:
    """Why a tensor of global `shape` cannot be cut into the slices that a layout tells; empty if it can.

    What an axis shards divides into its pieces, and of two factors of one dimension the inner one lies within a piece
    of the outer one, so that it does not matter which is cut first.
    """
    cuts: list[tuple[Shard, Axis, Dim]] = []
    for placement, axis in zip(layout, mesh, strict=True):
        if not isinstance(placement, Shard) or placement.padded:
            continue
        ways = math.prod(outer.size for other, outer, _ in cuts if same_factor(other, placement))
        parts = simplify_dim(placement.outer * ways * placement.pieces(axis.size))
        size = shape[placement.dim]
        if (isinstance(parts, int) and parts < 1) or not divides(parts, size):
            return f"{placement} on {axis}, but {size} elements do not divide into {parts} pieces"
        for other, outer, whole in cuts:
            nested = divides(whole, placement.outer) or divides(parts, other.outer)
            if other.dim == placement.dim and not same_factor(other, placement) and not nested:
                return f"{other} on {outer} and {placement} on {axis}, which do not nest"
        cuts.append((placement, axis, parts))
    return ""


def padded_part(size: Dim, ways: int) -> int | None:
    """How many elements each of `ways` ranks has of a padded shard; None where nothing is to be padded, or a rank would
    have nothing but filler."""
    if not isinstance(size, int) or size % ways == 0:
        return None
    part = -(-size // ways)
    return part if part * (ways - 1) < size else None


def local_shape(shape: tuple[Dim, ...], layout: Layout, mesh: Mesh) -> tuple[Dim, ...]:
    """The shape of one rank's part of a tensor of global `shape`.

    Raises:
        GalvatronError: a sharded dimension is not divisible by its axis, or one that is padded cannot be.
    """
    local = list(shape)
    for placement, axis in zip(layout, mesh, strict=True):
        if isinstance(placement, Shard) and placement.padded:
            part = padded_part(shape[placement.dim], axis.size)
            if part is None or local[placement.dim] != shape[placement.dim]:
                raise GalvatronError(
                    f"dimension {placement.dim} of size {local[placement.dim]} cannot be padded on axis {axis}"
                )
            local[placement.dim] = part
        elif isinstance(placement, Shard):
            quotient = exact_quotient(local[placement.dim], axis.size)
            if quotient is None:
                raise GalvatronError(
                    f"dimension {placement.dim} of size {local[placement.dim]} is not divisible by axis {axis}"
                )
            local[placement.dim] = quotient
    return tuple(local)


def global_shape(shape: tuple[Dim, ...], layout: Layout, mesh: Mesh) -> tuple[Dim, ...]:
    """The shape of the whole tensor of which `shape` is one rank's part: the inverse of `local_shape`.

    Raises:
        GalvatronError: a padded shard does not tell how much of it is filler.
    """
    whole = list(shape)
    for placement, axis in zip(layout, mesh, strict=True):
        if isinstance(placement, Shard):
            if placement.padded:
                raise GalvatronError(f"the whole size of a dimension that is {placement} on {axis} is not known")
            whole[placement.dim] = whole[placement.dim] * axis.size
    return tuple(whole)


def gradientless(layout: Layout) -> Layout:
    """The layout of a value that has no gradient: `R'` and `R` are the same."""
    return tuple(REPLICATE if p == BROADCAST else p for p in layout)


def positions(mesh: Mesh, name: str) -> tuple[int, ...]:
    """The places in a mesh of what a collective calls `name`: one axis, or all sub-axes of one; empty for none."""
    own = tuple(i for i, axis in enumerate(mesh) if axis.name == name)
    return own or tuple(i for i, axis in enumerate(mesh) if axis.parent == name)


def nameable_axes(mesh: Mesh) -> Mesh:
    """Every axis that a collective may name, outermost first: those of the mesh, and before its sub-axes the axis that
    they are cut from."""
    axes: list[Axis] = []
    for name, parts in groupby(mesh, key=lambda axis: axis.parent):
        run = list(parts)
        axes += [_whole(name, run), *run] if len(run) > 1 else run
    return tuple(axes)


def uncut_mesh(mesh: Mesh) -> Mesh:
    """The mesh with every cut axis whole again."""
    return tuple(_whole(name, list(parts)) for name, parts in groupby(mesh, key=lambda axis: axis.parent))


def joined(mesh: Mesh, *layouts: Layout) -> tuple[Mesh, list[tuple[int, ...]]]:
    """The coarsest mesh on which the layouts can be told: sub-axes of one axis on which each of them has one placement
    are one axis. With each of its axes the positions that it has in `mesh`."""
    axes: list[Axis] = []
    groups: list[tuple[int, ...]] = []
    for name, run in groupby(range(len(mesh)), key=lambda i: mesh[i].parent):
        parts = tuple(run)
        if all(layout[i] == layout[parts[0]] for layout in layouts for i in parts):
            axes.append(_whole(name, [mesh[i] for i in parts]))
            groups.append(parts)
        else:
            axes += [mesh[i] for i in parts]
            groups += [(i,) for i in parts]
    return tuple(axes), groups


def joined_layout(layout: Layout, mesh: Mesh) -> tuple[Layout, Mesh]:
    """A layout on the coarsest mesh on which it can be told, with that mesh."""
    coarse, groups = joined(mesh, layout)
    return tuple(layout[group[0]] for group in groups), coarse


def _whole(name: str, parts: Sequence[Axis]) -> Axis:
    return parts[0] if len(parts) == 1 else Axis(name, math.prod(a.size for a in parts), parts[-1].stride)


def joint_mesh(*meshes: Mesh) -> Mesh:
    """The coarsest mesh in which every axis of the given meshes is a run of axes; `dp=4@1` and `dp=2@2, tp=2@1` meet in
    two axes of two.

    Raises:
        GalvatronError: the axes overlap without nesting (`3@1` and `2@1`), so that no mesh refines both.
    """
    edges = sorted({1} | {edge for mesh in meshes for axis in mesh for edge in (axis.stride, axis.stride * axis.size)})
    axes: list[Axis] = []
    for inner, outer in zip(edges, edges[1:], strict=False):
        if outer % inner:
            raise GalvatronError(
                f"no mesh refines both strides {inner} and {outer}: their axes overlap without nesting"
            )
        axes.append(Axis(f"x{len(axes)}", outer // inner, inner))
    return tuple(reversed(axes))


def on_mesh(layout: Layout, mesh: Mesh, finer: Mesh) -> Layout:
    """The same layout on a mesh that refines `mesh`; new axes that no axis of `mesh` covers replicate."""
    placements: list[Placement] = []
    for axis in finer:
        covering = [p for p, a in zip(layout, mesh, strict=True) if a.stride <= axis.stride < a.stride * a.size]
        placements.append(covering[0] if covering else REPLICATE)
    return tuple(placements)
