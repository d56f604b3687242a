"""Every communication function against its definition: the value, and the gradient by the dual placement."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from galvatron import runtime as rt
from galvatron.ir import layout
from galvatron.ir.collectives import COLLECTIVES, STARTED
from galvatron.ir.graph import Value
from galvatron.ir.layout import dual
from galvatron.ir.types import TensorType
from galvatron.partition.conversion import redistribute
from galvatron.recompute import recomputed
from galvatron.runtime import comm
from galvatron.runtime.started import ending
from tests.ranks import run_ranks

DIM, OUTER = 1, 2

# One row per function of the contract: name, placement in, placement out, call. A placement is R, R', P, or S with
# the `Sharded` that says which slices.
SHARD = rt.Sharded(DIM, OUTER)
FOLDED = rt.Sharded(DIM, OUTER, folded=True)
OTHER = rt.Sharded(0)
CASES = {
    "copy": ("R", "R'", lambda x, a: rt.copy(x, a)),
    "all_reduce": ("P", "R", lambda x, a: rt.all_reduce(x, a, grad="identity")),
    "all_reduce'": ("P", "R'", lambda x, a: rt.all_reduce(x, a, grad="all_reduce")),
    "all_gather": (SHARD, "R", lambda x, a: rt.all_gather(x, a, dim=DIM, outer=OUTER, grad="slice")),
    "all_gather'": (SHARD, "R'", lambda x, a: rt.all_gather(x, a, dim=DIM, outer=OUTER, grad="reduce_scatter")),
    "all_gather dim 0": (OTHER, "R'", lambda x, a: rt.all_gather(x, a, dim=0, grad="reduce_scatter")),
    "reduce_scatter": ("P", SHARD, lambda x, a: rt.reduce_scatter(x, a, dim=DIM, outer=OUTER)),
    "slice": ("R", SHARD, lambda x, a: rt.slice(x, a, dim=DIM, outer=OUTER, grad="all_gather")),
    "slice'": ("R'", SHARD, lambda x, a: rt.slice(x, a, dim=DIM, outer=OUTER, grad="pad")),
    "slice dim 0": ("R", OTHER, lambda x, a: rt.slice(x, a, dim=0, grad="all_gather")),
    "all_to_all": (
        OTHER,
        SHARD,
        lambda x, a: rt.all_to_all(x, a, split_dim=DIM, split_outer=OUTER, concat_dim=0, concat_outer=1),
    ),
    "first": ("R", "P", lambda x, a: rt.first(x, a, grad="identity")),
    "first'": ("R'", "R", lambda x, a: rt.first(x, a, grad="first")),
    "pad": (SHARD, "P", lambda x, a: rt.pad(x, a, dim=DIM, outer=OUTER)),
    "all_gather folded": (
        FOLDED, "R'", lambda x, a: rt.all_gather(x, a, dim=DIM, outer=OUTER, folded=True, grad="reduce_scatter"),
    ),
    "reduce_scatter folded": ("P", FOLDED, lambda x, a: rt.reduce_scatter(x, a, dim=DIM, outer=OUTER, folded=True)),
    "slice folded": ("R'", FOLDED, lambda x, a: rt.slice(x, a, dim=DIM, outer=OUTER, folded=True, grad="pad")),
    "pad folded": (FOLDED, "P", lambda x, a: rt.pad(x, a, dim=DIM, outer=OUTER, folded=True)),
    "all_to_all folded": (
        OTHER, FOLDED,
        lambda x, a: rt.all_to_all(x, a, split_dim=DIM, split_outer=OUTER, split_folded=True, concat_dim=0),
    ),
    "all_to_all of one dimension, to folded": (
        SHARD, FOLDED,
        lambda x, a: rt.all_to_all(
            x, a, split_dim=DIM, split_outer=OUTER, split_folded=True, concat_dim=DIM, concat_outer=OUTER
        ),
    ),
    "all_to_all of one dimension, to another factor": (
        FOLDED, rt.Sharded(DIM),
        lambda x, a: rt.all_to_all(
            x, a, split_dim=DIM, concat_dim=DIM, concat_outer=OUTER, concat_folded=True
        ),
    ),
}  # fmt: skip
DUAL = {"R": "R", "R'": "P", "P": "R'"}


def slices(full: Tensor, size: int, place: rt.Sharded) -> list[Tensor]:
    """The definition: per block of the outer factor, the i-th chunk, or the i-th from the front and from the back."""
    dim, blocks = place.dim, full.chunk(place.outer, place.dim)
    if place.folded:
        pieces = [block.chunk(2 * size, dim) for block in blocks]
        return [torch.cat([p for own in pieces for p in (own[i], own[-1 - i])], dim) for i in range(size)]
    return [torch.cat([block.chunk(size, dim)[i] for block in blocks], dim) for i in range(size)]


def placed(full: Tensor, placement, axis: rt.Axis) -> Tensor:
    """This rank's part of `full`; the terms of a partial sum are random."""
    if placement in ("R", "R'"):
        return full.clone()
    if placement == "P":
        generator = torch.Generator().manual_seed(7)
        terms = [torch.randn(full.shape, dtype=full.dtype, generator=generator) for _ in range(axis.size - 1)]
        return [*terms, full - sum(terms)][axis.index]
    return slices(full, axis.size, placement)[axis.index]


def summed(x: Tensor, axis: rt.Axis) -> Tensor:
    total = x.clone()
    parts = torch.view_as_real(total) if total.is_complex() else total
    torch.distributed.all_reduce(parts, group=axis.group)
    return total


def check(actual: Tensor, full: Tensor, placement, axis: rt.Axis) -> None:
    expected = full if placement == "P" else placed(full, placement, axis)
    torch.testing.assert_close(summed(actual, axis) if placement == "P" else actual, expected, rtol=1e-12, atol=1e-12)


def all_cases(world: rt.World, contiguous: bool, dtype: torch.dtype = torch.float64) -> None:
    axis = rt.build_mesh(world, [[(world.size, 1)]]).axis(world.size, stride=1)
    generator = torch.Generator().manual_seed(1)
    for source, target, call in CASES.values():
        value, weight = torch.randn(2, 6, 24, 5, dtype=dtype, generator=generator)
        local = placed(value, source, axis)
        if not contiguous:
            local = local.transpose(0, 2).contiguous().transpose(0, 2)
        local.requires_grad_()
        result = call(local * 1.0, axis)
        check(result.detach(), value, target, axis)
        # The loss is <weight, value>, whose gradient for the value is `weight`, given and received by the duals.
        result.backward(placed(weight, DUAL.get(target, target), axis))
        assert local.grad is not None
        check(local.grad, weight, DUAL.get(source, source), axis)


def integer_cases(world: rt.World, dtype: torch.dtype) -> None:
    axis = rt.build_mesh(world, [[(world.size, 1)]]).axis(world.size, stride=1)
    value = torch.arange(6 * 24 * 2).remainder(3).view(6, 24, 2).to(dtype)
    for source, target, call in CASES.values():
        if "P" in (source, target):
            continue
        result = call(placed(value, source, axis), axis)
        assert result.dtype == dtype and not result.requires_grad
        assert torch.equal(result, placed(value, target, axis))


def every_conversion(world: rt.World, shape: tuple[int, ...], started: bool) -> None:
    """Each row of the conversion table as the compiler writes it, run by the functions that it names; with what sends
    `started`, and waited for later, or not."""
    axis = rt.build_mesh(world, [[(world.size, 1)]]).axis(world.size, stride=1)
    mesh = (layout.Axis("a", world.size, 1),)
    shards = [layout.Shard(d, outer, folded=folded) for d in (0, 1) for outer in (1, 3) for folded in (False, True)]
    places: list[layout.Placement] = [layout.REPLICATE, layout.BROADCAST, layout.PARTIAL, *shards]
    generator = torch.Generator().manual_seed(1)
    for source, target in itertools.permutations(places, 2):
        value, weight = torch.randn(2, *shape, dtype=torch.float64, generator=generator)
        local = placed(value, told(source), axis).requires_grad_()
        type_ = TensorType("f64", tuple(local.shape))
        ops = redistribute(Value("x", type_, (source,)), (target,), mesh, TensorType("f64", shape), fresh_name=str)
        result = local * 1.0
        for op in ops:
            keywords = {name: given for name, given in op.kwargs if name != "axis"}
            function = getattr(rt, op.target.removeprefix("comm."))
            if started and STARTED in COLLECTIVES[op.target].flags:
                result = rt.wait(function(result, axis, **keywords, started=True), axis)
            else:
                result = function(result, axis, **keywords)
        check(result.detach(), value, told(target), axis)
        result.backward(placed(weight, told(dual(target)), axis))
        assert local.grad is not None
        check(local.grad, weight, told(dual(source)), axis)


def told(placement: layout.Placement) -> str | rt.Sharded:
    if not isinstance(placement, layout.Shard):
        return str(placement)
    assert isinstance(placement.outer, int)
    return rt.Sharded(placement.dim, placement.outer, folded=placement.folded)


def strided_groups(world: rt.World) -> None:
    mesh = rt.build_mesh(world, [[(2, 1), (2, 2), (4, 1)]])
    rank = torch.tensor(float(world.rank))
    inner, outer, whole = mesh.axis(2, stride=1), mesh.axis(2, stride=2), mesh.axis(4, stride=1)
    assert (inner.index, outer.index, whole.index) == (world.rank % 2, world.rank // 2, world.rank)
    neighbours = {0: (1.0, 2.0), 1: (1.0, 4.0), 2: (5.0, 2.0), 3: (5.0, 4.0)}[world.rank]
    assert rt.all_reduce(rank, inner, grad="identity") == neighbours[0]
    assert rt.all_reduce(rank, outer, grad="identity") == neighbours[1]
    assert rt.all_reduce(rank, whole, grad="identity") == 6.0


def pipeline_groups(world: rt.World) -> tuple[int, tuple[int, ...], list[int]]:
    mesh = rt.build_mesh(world, [[(2, 1)], []])
    assert mesh.pipeline is not None
    return mesh.pipeline_rank, mesh.ranks, torch.distributed.get_process_group_ranks(mesh.pipeline)


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("contiguous", [True, False])
def test_value_and_gradient_of_every_function(world_size, contiguous):
    run_ranks(all_cases, world_size, contiguous, torch.float64)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_every_row_of_the_conversion_table(world_size: int, started: bool) -> None:
    run_ranks(every_conversion, world_size, (72, 72), started)


class Noted(torch.autograd.Function):
    """A computation that notes when it runs."""

    @staticmethod
    def forward(ctx, x: Tensor, notes: list[str]) -> Tensor:  # type: ignore[override]  # autograd's signature is open
        ctx.notes = notes
        notes.append("computes")
        return x * 2

    @staticmethod
    def backward(ctx, gradient: Tensor):  # type: ignore[override]
        ctx.notes.append("computes")
        return gradient * 2, None


def what_runs_when(world: rt.World) -> list[str]:
    """The order of a computation and of what is done to a collective that is started before it, in both directions."""
    axis = rt.build_mesh(world, [[(world.size, 1)]]).axis(world.size, stride=1)
    notes: list[str] = []
    start, wait = comm.all_reduce, comm.Handle.wait

    def noted_start(*args: Any, **kwargs: Any) -> comm.Handle:
        notes.append("starts")
        return start(*args, **kwargs)

    def noted_wait(handle: comm.Handle) -> None:
        notes.append("waits")
        wait(handle)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comm, "all_reduce", noted_start)
        patch.setattr(comm.Handle, "wait", noted_wait)
        x, y = torch.ones(2, 4, dtype=torch.float64, requires_grad=True).unbind()
        started = rt.all_reduce(x, axis, grad="all_reduce", started=True)
        beside = Noted.apply(y, notes)
        (rt.wait(started, axis) * beside).sum().backward()
    return notes


def test_what_is_started_is_under_way_while_other_things_run_in_both_directions() -> None:
    once = ["starts", "computes", "waits"]
    assert run_ranks(what_runs_when, 2) == [once + once] * 2


def what_a_replay_waits_for(world: rt.World) -> list[str]:
    """What is done to a collective when nothing is missing any more before it is waited for."""
    axis = rt.build_mesh(world, [[(world.size, 1)]]).axis(world.size, stride=1)
    notes: list[str] = []
    wait = comm.Handle.wait

    def noted_wait(handle: comm.Handle) -> None:
        notes.append("waits")
        wait(handle)

    def layer(x: Tensor, y: Tensor) -> Tensor:
        notes.append("runs")
        started = rt.all_reduce(x, axis, grad="all_reduce", started=True)
        beside = y.tanh()
        return rt.wait(started, axis) + beside

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comm.Handle, "wait", noted_wait)
        x, y = torch.ones(2, 4, dtype=torch.float64, requires_grad=True).unbind()
        recomputed(ending(layer))(x, y).sum().backward()
    return notes


def test_a_replay_that_ends_early_leaves_nothing_under_way() -> None:
    """It waits for what it has started, and the backward for the sum of the gradient."""
    assert [sorted(notes) for notes in run_ranks(what_a_replay_waits_for, 2)] == [["runs"] * 2 + ["waits"] * 3] * 2


def conjugates(world: rt.World) -> None:
    axis = rt.build_mesh(world, [[(world.size, 1)]]).axis(world.size, stride=1)
    value = torch.view_as_complex(torch.randn(4, 6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
    own = value.chunk(world.size, 1)[axis.index].conj()
    assert torch.equal(rt.all_gather(own, axis, dim=1, grad="slice"), value.conj().resolve_conj())
    assert torch.equal(rt.all_reduce(value.conj(), axis, grad="identity"), world.size * value.conj().resolve_conj())


def test_complex_tensors_travel_as_pairs():
    run_ranks(all_cases, 2, True, torch.complex128)
    run_ranks(conjugates, 2)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
def test_integer_tensors_travel_without_gradient(dtype):
    run_ranks(integer_cases, 2, dtype)


def test_axes_are_groups_of_their_stride():
    run_ranks(strided_groups, 4)


def test_pipeline_groups_join_equal_places_of_the_stages():
    assert run_ranks(pipeline_groups, 4) == [
        (0, (0, 1), [0, 2]),
        (0, (0, 1), [1, 3]),
        (1, (2, 3), [0, 2]),
        (1, (2, 3), [1, 3]),
    ]
