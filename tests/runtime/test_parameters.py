"""Buckets on ranks: values and gradients survive every ZeRO level, and each level keeps what its row says."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from galvatron import runtime as rt
from galvatron.runtime.buckets import ALONE, Bucket, Group
from galvatron.runtime.stage import StateSpec
from tests.ranks import run_ranks

SHAPES = {"matrix": (5, 7), "vector": (3,), "scalar": (), "large": (40, 11)}


def build(world: rt.World, level: int, master: torch.dtype | None = None) -> tuple[Bucket, dict[str, torch.Tensor]]:
    mesh = rt.build_mesh(world, [[(world.size, 1)]])
    axis = mesh.axis(world.size, 1)
    dtype = torch.float64 if master is None else torch.bfloat16
    placements = ((axis, rt.Summed()),)
    specs = [StateSpec(n, s, dtype, placements, "parameter", level, master) for n, s in SHAPES.items()]
    bucket = Bucket(specs, Group(axis.group, axis.size, axis.index), None, world.device)
    torch.manual_seed(0)
    values = {name: torch.randn(shape, dtype=master or dtype) for name, shape in SHAPES.items()}
    for member in bucket.members:
        bucket.write(member, values[member.name])
    return bucket, values


def values_survive(world: rt.World, level: int, master: torch.dtype | None) -> None:
    bucket, values = build(world, level, master)
    bucket.ready()
    for member in bucket.members:
        assert torch.equal(bucket.read(member, bucket.shard), values[member.name])
        assert torch.equal(member.leaf, values[member.name].to(bucket.dtype))
    with torch.no_grad():
        for member in bucket.members:
            member.trained.mul_(2.0)
    bucket.release()
    bucket.publish()
    bucket.ready()
    for member in bucket.members:
        assert torch.equal(member.leaf, (2.0 * values[member.name]).to(bucket.dtype))


@pytest.mark.parametrize("master", [None, torch.float32])
@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_values_and_updates_reach_every_rank(level: int, master: torch.dtype | None) -> None:
    run_ranks(values_survive, 3, level, master)


def sums(world: rt.World, level: int, micro_batches: int) -> None:
    bucket, values = build(world, level)
    bucket.start()
    for micro_batch in range(micro_batches):
        for member in bucket.members[:-1]:  # the last one is never reached
            bucket.ready()
            member.leaf.grad = values[member.name] * (world.rank + 1) * (micro_batch + 1)
            bucket.collect(member)
        if level >= 2:
            bucket.sum()
    if level < 2:
        bucket.sum()
    bucket.finish()
    bucket.hand_over()
    factor = sum(range(1, world.size + 1)) * sum(range(1, micro_batches + 1))
    for member in bucket.members:
        reached = member is not bucket.members[-1]
        expected = factor * values[member.name] if reached else torch.zeros(SHAPES[member.name], dtype=torch.float64)
        torch.testing.assert_close(bucket.gradient(member), expected, rtol=1e-14, atol=0)
        assert member.trained.grad is not None
        assert member.trained.grad.numel() == member.trained.numel()
        assert member.trained.dim() == max(1, len(SHAPES[member.name])) or level == 0


@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_gradients_of_all_ranks_and_micro_batches_add_up(level: int) -> None:
    run_ranks(sums, 3, level, 3)


def kept(world: rt.World, level: int) -> tuple[int, int, int]:
    """Bytes of values, gradients and trained parts between steps."""
    bucket, _ = build(world, level)
    bucket.start()
    for member in bucket.members:
        bucket.ready()
        member.leaf.grad = torch.ones_like(member.leaf)
        bucket.collect(member)
    bucket.sum()
    bucket.release()
    bucket.finish()
    bucket.hand_over()
    gradients = [m.trained.grad.untyped_storage() for m in bucket.members if m.trained.grad is not None]
    gradient_bytes = sum({storage.data_ptr(): storage.nbytes() for storage in gradients}.values())
    return bucket.values.untyped_storage().nbytes(), gradient_bytes, bucket.shard.nbytes


def test_each_level_keeps_its_part() -> None:
    whole, part = run_ranks(kept, 3, 0)[0][0], run_ranks(kept, 3, 3)[0][2]
    padded = 3 * part
    assert whole <= padded < 1.2 * whole
    assert run_ranks(kept, 3, 0) == [(whole, whole, whole)] * 3
    assert run_ranks(kept, 3, 1) == [(padded, padded, part)] * 3
    assert run_ranks(kept, 3, 2) == [(padded, part, part)] * 3
    assert run_ranks(kept, 3, 3) == [(0, part, part)] * 3


def test_one_rank_needs_no_collective() -> None:
    spec = StateSpec("w", (4, 2), torch.float32, (), "parameter", 3)
    bucket = Bucket([spec], ALONE, None, torch.device("cpu"))
    (member,) = bucket.members
    bucket.write(member, torch.ones(4, 2))
    bucket.ready()
    assert member.trained is member.leaf and isinstance(member.leaf, nn.Parameter)
    member.leaf.sum().backward()
    bucket.hand_over()
    assert torch.equal(bucket.gradient(member), torch.ones(4, 2))
