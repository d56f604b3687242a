"""All ranks of a mesh in one process: whole tensors taken apart and put together by layout, collectives in lockstep.

Written from the definitions in `galvatron.ir.layout` and the collective table alone, so that it shares no mistake with
the partitioner.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from itertools import product
from math import prod
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist

from galvatron import runtime as rt
from galvatron.errors import GalvatronError
from galvatron.ir.graph import Graph, Op
from galvatron.ir.interpreter import OpHandler, run_graph
from galvatron.ir.layout import Axis, Layout, Mesh, Partial, Shard, dual, nameable_axes
from galvatron.ir.spmd import on_slices, without_axis
from galvatron.ir.types import Dim, evaluate

Tensors = dict[str, torch.Tensor]


def mesh_of(*sizes: int) -> Mesh:
    """A mesh with axes `x0`, `x1`, … from the outermost to the innermost."""
    return tuple(Axis(f"x{i}", size, prod(sizes[i + 1 :])) for i, size in enumerate(sizes))


def world(mesh: Mesh) -> range:
    return range(prod(axis.size for axis in mesh))


def coordinate(axis: Axis, rank: int) -> int:
    """Where a rank of the stage is on an axis."""
    return (rank // axis.stride) % axis.size


def kept(length: int, dim: int, layout: Layout, mesh: Mesh, rank: int, batch: int = 1) -> torch.Tensor:
    """The indices along `dim`, of `length` elements, that a rank holds.

    Of the dimension seen as (outer, stretch), a rank keeps a part of every stretch: what axes that shard this factor
    leave of it one after the other, each one chunk, or of a folded shard one from the front and its mirror image. Of a
    padded shard the last rank has what is left.
    """
    index = torch.arange(length)
    kept_of: dict[int, torch.Tensor] = {}
    for placement, axis in zip(layout, mesh, strict=True):
        if isinstance(placement, Shard) and placement.dim == dim:
            outer = evaluate(placement.outer, batch)
            part = kept_of.get(outer, torch.arange(length // outer))
            pieces = 2 * axis.size if placement.folded else axis.size
            if length % outer or (len(part) % pieces == 0) == placement.padded:
                raise GalvatronError(f"{placement} does not divide {length} elements over {axis}")
            chunks, own = part.chunk(pieces), coordinate(axis, rank)
            kept_of[outer] = torch.cat([chunks[own], chunks[pieces - 1 - own]]) if placement.folded else chunks[own]
    keep = torch.ones(length, dtype=torch.bool)
    for outer, part in kept_of.items():
        keep &= torch.isin(index % (length // outer), part)
    return index[keep]


@lru_cache(maxsize=512)
def _lines(shape: tuple[int, ...], layout: Layout, mesh: Mesh, batch: int) -> tuple[tuple[torch.Tensor, ...], ...]:
    """The indices along each dimension that each rank holds: many values of a graph are laid out alike."""
    dims = tuple(enumerate(shape))
    return tuple(tuple(kept(length, dim, layout, mesh, rank, batch) for dim, length in dims) for rank in world(mesh))


def _filler(part: torch.Tensor, length: int, dim: int, layout: Layout, mesh: Mesh) -> int:
    """How many elements of filler a rank's `part` of a padded dimension needs."""
    sizes = [a.size for p, a in zip(layout, mesh, strict=True) if isinstance(p, Shard) and p.padded and p.dim == dim]
    return -(-length // sizes[0]) - part.shape[dim] if sizes else 0


def distribute(
    whole: torch.Tensor, layout: Layout, mesh: Mesh, batch: int = 1, *, zeros: bool = False
) -> list[torch.Tensor]:
    """Each rank's part: copies, slices, or random terms of a sum. Filler is random too, or `zeros` (of a gradient)."""
    partial_axes = [axis for placement, axis in zip(layout, mesh, strict=True) if isinstance(placement, Partial)]
    terms = dict(zip(product(*(range(a.size) for a in partial_axes)), _terms(whole, partial_axes), strict=True))
    parts: list[torch.Tensor] = []
    for rank, lines in enumerate(_lines(tuple(whole.shape), layout, mesh, batch)):
        part = terms[tuple(coordinate(axis, rank) for axis in partial_axes)]
        for dim, (length, line) in enumerate(zip(whole.shape, lines, strict=True)):
            part = part if len(line) == length else part.index_select(dim, line)
            if missing := _filler(part, length, dim, layout, mesh):
                filler = part.new_zeros((*part.shape[:dim], missing, *part.shape[dim + 1 :]))
                part = torch.cat([part, filler if zeros else torch.randn_like(filler)], dim)
        parts.append(part.clone())
    return parts


def _terms(whole: torch.Tensor, partial_axes: list[Axis]) -> list[torch.Tensor]:
    count = prod(axis.size for axis in partial_axes)
    if whole.dtype.is_floating_point or whole.dtype.is_complex:
        terms = [torch.randn_like(whole) for _ in range(count - 1)]
    elif whole.dtype == torch.bool:
        return [whole, *(torch.zeros_like(whole) for _ in range(count - 1))]
    else:
        terms = [torch.randint_like(whole, -3, 4) for _ in range(count - 1)]
    rest = whole.clone()
    for term in terms:
        rest -= term
    return [*terms, rest]


def combine(
    parts: list[torch.Tensor],
    layout: Layout,
    mesh: Mesh,
    shape: tuple[int, ...],
    batch: int = 1,
    *,
    zeros: bool = False,
) -> torch.Tensor:
    """The whole tensor from each rank's part.

    Raises:
        GalvatronError: ranks that should hold the same do not, a part has another shape, or something is missing, or
            filler is not finite, or not zero where it has to be: `zeros`, of a gradient.
    """
    partial_axes = [axis for placement, axis in zip(layout, mesh, strict=True) if isinstance(placement, Partial)]
    terms: dict[tuple[int, ...], torch.Tensor] = {}
    filled: dict[tuple[int, ...], torch.Tensor] = {}
    for rank, lines in enumerate(_lines(shape, layout, mesh, batch)):
        key = tuple(coordinate(axis, rank) for axis in partial_axes)
        whole = terms.setdefault(key, torch.zeros(shape, dtype=parts[rank].dtype))
        seen = filled.setdefault(key, torch.zeros(shape, dtype=torch.bool))
        part, own = parts[rank], tuple(map(len, lines))
        if len(part.shape) == len(own) and all(map(int.__ge__, part.shape, own)):
            part = _without_filler(part, shape, lines, layout, mesh, zeros)
        if tuple(part.shape) != own:
            raise GalvatronError(f"rank {rank} has a part of shape {tuple(part.shape)}, not {own}")
        place = tuple(line.reshape([-1 if i == d else 1 for i in range(len(shape))]) for d, line in enumerate(lines))
        if bool(seen[place].all()) and not _alike(part, whole[place]):
            raise GalvatronError(f"rank {rank} has other numbers than a rank that should have the same")
        whole[place] = part
        seen[place] = True
    if not all(bool(seen.all()) for seen in filled.values()):
        raise GalvatronError("some elements are on no rank")
    total = torch.zeros(shape, dtype=parts[0].dtype)
    for term in terms.values():
        total = total + term
    return total


def _alike(part: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two ranks have the same, which mostly is so to the last bit."""
    return torch.equal(part, other) or torch.allclose(part, other, rtol=1e-7, atol=1e-9, equal_nan=True)


def _without_filler(
    part: torch.Tensor, shape: tuple[int, ...], lines: tuple[torch.Tensor, ...], layout: Layout, mesh: Mesh, zeros: bool
) -> torch.Tensor:
    for dim, line in enumerate(lines):
        if part.shape[dim] == len(line) == shape[dim]:
            continue  # whole, as most are
        own = part.narrow(dim, 0, min(len(line), part.shape[dim]))
        missing = _filler(own, shape[dim], dim, layout, mesh)
        filler = part.narrow(dim, len(line), missing)
        if not bool(filler.isfinite().all()) or (zeros and bool(filler.any())):
            raise GalvatronError(f"the filler of dimension {dim} is not {'zero' if zeros else 'finite'}")
        part = part.narrow(dim, 0, part.shape[dim] - missing)
    return part


def dual_layout(layout: Layout) -> Layout:
    return tuple(dual(placement) for placement in layout)


Group = list[torch.Tensor]
"""One tensor per coordinate of an axis."""


def _all_reduce(group: Group) -> Group:
    total = group[0]
    for term in group[1:]:
        total = total + term
    return [total] * len(group)


def _indices(length: int, place: Shard, ranks: int) -> list[torch.Tensor]:
    """What each rank of an axis has of a dimension that is whole without it."""
    mesh = mesh_of(ranks)
    return [kept(length, place.dim, (place,), mesh, rank) for rank in range(ranks)]


def _gather(group: Group, place: Shard) -> Group:
    held = _indices(len(group) * group[0].shape[place.dim], place, len(group))
    order = torch.argsort(torch.cat(held))
    return [torch.cat(group, place.dim).index_select(place.dim, order)] * len(group)


def _slice(group: Group, place: Shard) -> Group:
    held = _indices(group[0].shape[place.dim], place, len(group))
    return [t.index_select(place.dim, index) for t, index in zip(group, held, strict=True)]


def _pad(group: Group, place: Shard) -> Group:
    zero = [torch.zeros_like(t) for t in group]
    return [_gather([*zero[:i], t, *zero[i + 1 :]], place)[0] for i, t in enumerate(group)]


def _first(group: Group) -> Group:
    return [group[0], *(torch.zeros_like(t) for t in group[1:])]


def _reduce_scatter(group: Group, place: Shard) -> Group:
    return _slice(_all_reduce(group), place)


def _all_to_all(group: Group, split: Shard, concat: Shard) -> Group:
    return _slice(_gather(group, concat), split)


def _rules(op: Op, batch: int) -> tuple[Callable[[Group], Group], Callable[[Group], Group]]:
    """What a collective does to the value and to its gradient."""

    def number(name: str) -> int:
        value = op.kwarg(name)
        assert isinstance(value, Dim)
        return evaluate(value, batch)

    def identity(group: Group) -> Group:
        return group

    def place(side: str = "") -> Shard:
        return Shard(number(f"{side}dim"), number(f"{side}outer"), folded=op.kwarg(f"{side}folded") is True)

    def sliced(function: Callable[[Group, Shard], Group]) -> Callable[[Group], Group]:
        return lambda group: function(group, place())

    grad = op.kwarg("grad")
    match op.target:
        case "comm.wait":
            return identity, identity  # nothing is under way here: each op is over before the next
        case "comm.copy":
            return identity, _all_reduce
        case "comm.all_reduce":
            return _all_reduce, {"identity": identity, "all_reduce": _all_reduce}[str(grad)]
        case "comm.all_gather":
            return sliced(_gather), sliced({"slice": _slice, "reduce_scatter": _reduce_scatter}[str(grad)])
        case "comm.reduce_scatter":
            return sliced(_reduce_scatter), sliced(_gather)
        case "comm.slice":
            return sliced(_slice), sliced({"all_gather": _gather, "pad": _pad}[str(grad)])
        case "comm.pad":
            return sliced(_pad), sliced(_slice)
        case "comm.first":
            return {"identity": (_first, identity), "first": (identity, _first)}[str(grad)]
        case "comm.dispatch" | "comm.combine":
            return identity, identity  # each rank keeps its rows, and has all that they choose (`_whole`)
        case "comm.all_to_all":
            split, concat = place("split_"), place("concat_")
            return lambda g: _all_to_all(g, split, concat), lambda g: _all_to_all(g, concat, split)
    raise GalvatronError(f"there is no collective {op.target!r}")


class _Exchange(torch.autograd.Function):
    """One collective on one group; the gradient follows the table, not the chain rule across ranks."""

    @staticmethod
    def forward(ctx, forward, backward, *group):  # type: ignore[override]  # autograd's signature is open
        ctx.rule = backward
        return tuple(t.clone() for t in forward(list(group)))

    @staticmethod
    def backward(ctx, *gradients):  # type: ignore[override]
        return None, None, *ctx.rule(list(gradients))


def exchange(op: Op, mesh: Mesh, parts: list[torch.Tensor], batch: int = 1) -> list[torch.Tensor]:
    """Runs a collective over all ranks."""
    (axis,) = (a for a in nameable_axes(mesh) if a.name == op.kwarg("axis"))
    results = list(parts)
    for first in world(mesh):
        if coordinate(axis, first) == 0:
            ranks = [first + i * axis.stride for i in range(axis.size)]
            group = [parts[r] for r in ranks]
            forward, backward = _rules(op, batch)
            made = _Exchange.apply(forward, backward, *group) if group[0].is_floating_point() else forward(group)
            for rank, tensor in zip(ranks, made, strict=True):
                results[rank] = tensor
    return results


class _Group:
    """A process group of threads, one per coordinate of an axis: what `galvatron.runtime.spmd` asks of one."""

    def __init__(self, size: int) -> None:
        self._barrier = threading.Barrier(size, timeout=30)
        self._deposits: list[Group | None] = [None] * size

    def member(self, coordinate: int) -> SimpleNamespace:
        return SimpleNamespace(
            allreduce=partial(self._allreduce, coordinate), _allgather_base=partial(self._allgather, coordinate)
        )

    def _allgather(self, coordinate: int, whole: torch.Tensor, own: torch.Tensor) -> SimpleNamespace:
        self._deposits[coordinate] = [own.clone()]
        self._barrier.wait()
        whole.copy_(torch.stack([deposit[0] for deposit in self._deposits if deposit is not None]).view_as(whole))
        self._barrier.wait()
        return SimpleNamespace(wait=lambda: None)

    def _allreduce(self, coordinate: int, tensors: Group | torch.Tensor, options: Any = None) -> SimpleNamespace:
        own = [tensors] if isinstance(tensors, torch.Tensor) else tensors
        self._deposits[coordinate] = [t.clone() for t in own]
        self._barrier.wait()
        maximum = options is not None and options.reduceOp == dist.ReduceOp.MAX
        for i, tensor in enumerate(own):
            stacked = torch.stack([deposit[i] for deposit in self._deposits if deposit is not None])
            tensor.copy_(stacked.amax(0) if maximum else stacked.sum(0))
        self._barrier.wait()
        return SimpleNamespace(wait=lambda: None)


def _spmd(op: Op, axis: Axis, ranks: list[int], run: Callable[[int, OpHandler], Tensors]) -> list[Tensors]:
    """One `spmd.` op on one group of ranks, each in a thread."""
    group = _Group(axis.size)

    def of_rank(coordinate: int) -> Tensors:
        def handler(op: Op, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            function = getattr(rt, on_slices(op).function or op.name)
            own = SimpleNamespace(size=axis.size, index=coordinate, group=group.member(coordinate))
            return function(*args, **{**kwargs, "axis": own})

        return run(ranks[coordinate], handler)

    with ThreadPoolExecutor(axis.size) as pool:
        return list(pool.map(of_rank, range(axis.size)))


def _drawn(op: Op, mesh: Mesh, rank: int, run: Callable[[int], Tensors]) -> Tensors:
    """One `random.` op on one rank, as its site and its coordinates say."""
    axes = op.kwarg("axes")
    assert isinstance(axes, tuple)
    coordinates = [coordinate(axis, rank) for axis in mesh if axis.name in axes]
    with torch.random.fork_rng([]):
        torch.manual_seed(zlib.crc32(repr((op.kwarg("site"), *coordinates)).encode()))
        return run(rank)


def run_op(
    op: Op,
    graph: Graph,
    mesh: Mesh,
    env: list[Tensors],
    *,
    batch: int,
    global_batch: int,
    concurrent_backward: bool = False,
) -> list[Tensors]:
    """Runs one local op of a graph on every rank; returns its results by rank and name.

    With `concurrent_backward` the backwards of ranks must run at once, each in a thread: those of the runtime's
    functions may wait for each other, where an op otherwise runs as what it means.
    """
    inputs = tuple(graph.values[n] for n in dict.fromkeys(op.operands))
    single = Graph(inputs, (), (op,), tuple(v.name for v in op.results))

    def run(rank: int, handler: OpHandler | None = None) -> Tensors:
        return run_graph(single, env[rank], batch=batch, global_batch=global_batch, handler=handler)

    if op.target.startswith("comm."):
        return [{op.result.name: p} for p in exchange(op, mesh, [e[op.operands[0]] for e in env], batch)]
    if op.target.startswith("random."):
        return [_drawn(op, mesh, rank, run) for rank in world(mesh)]
    if not op.target.startswith("spmd."):
        return [run(rank) for rank in world(mesh)]
    (axis,) = (a for a in nameable_axes(mesh) if a.name == op.kwarg("axis"))
    counterpart = on_slices(op)
    # in its backward, for other ranks
    waits = counterpart.ring is not None or counterpart.channels or op.kwarg("routed") is not None
    by_meaning = waits and not concurrent_backward
    results: list[Tensors] = [{} for _ in world(mesh)]
    for first in world(mesh):
        if coordinate(axis, first) == 0:
            ranks = [first + i * axis.stride for i in range(axis.size)]
            own = [env[rank] for rank in ranks]
            group = _whole(op, graph, mesh, axis, own, batch) if by_meaning else _spmd(op, axis, ranks, run)
            for rank, made in zip(ranks, group, strict=True):
                results[rank] = made
    return results


def _whole(op: Op, graph: Graph, mesh: Mesh, axis: Axis, env: list[Tensors], batch: int) -> list[Tensors]:
    """An op of which ranks wait for each other in the backward, on one group of ranks: as what it means, the op on
    whole tensors, of which each rank then has its slice, or all."""
    place = mesh.index(axis)
    given = {}
    for name in dict.fromkeys(op.operands):
        placement = (graph.values[name].layout or ())[place]
        parts = [tensors[name] for tensors in env]
        given[name] = _gather(parts, placement)[0] if isinstance(placement, Shard) else parts[0]
    single = Graph(
        tuple(graph.values[name] for name in given), (), (without_axis(op),), tuple(v.name for v in op.results)
    )
    results: list[Tensors] = [{} for _ in env]
    for name, tensor in run_graph(single, given, batch=batch).items():
        placement = (graph.values[name].layout or ())[place]
        every = [tensor] * axis.size
        parts = _slice(every, placement) if isinstance(placement, Shard) else every
        for own, part in zip(results, parts, strict=True):
            own[name] = part
    return results


def run_ranks(graph: Graph, mesh: Mesh, values: list[Tensors], *, batch: int, global_batch: int) -> list[Tensors]:
    """Runs a local graph on every rank, op by op in lockstep; returns all values of every rank by name.

    Raises:
        GalvatronError: a tensor has another shape than its type says.
    """
    env = [dict(v) for v in values]
    for op in graph.ops:
        results = run_op(op, graph, mesh, env, batch=batch, global_batch=global_batch)
        for rank, (e, made) in enumerate(zip(env, results, strict=True)):
            e.update(made)
            for value in op.results:
                shape, own = tuple(evaluate(d, batch) for d in value.type.shape), tuple(e[value.name].shape)
                if own != shape:
                    raise GalvatronError(f"%{value.name} is {own} on rank {rank}, but its type says {shape}")
    return env
