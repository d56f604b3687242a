"""The counter of messages sees every way in which a rank sends, and which groups of ranks they are for."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate

from galvatron import runtime as rt
from galvatron.runtime import comm
from tests.ranks import run_ranks


def forward_and_backward(world: rt.World) -> rt.CommunicationCounter:
    mesh = rt.build_mesh(world, [[(2, 1), (2, 2)]])
    near, far = mesh.axis(2, 1), mesh.axis(2, 2)
    x = torch.ones(4, 4, requires_grad=True)
    rt.copy(x, near).sum().backward()
    with rt.CommunicationCounter() as counter:
        y = rt.all_gather(rt.copy(x, near), far, dim=0, grad="reduce_scatter")
        rt.all_to_all(y, far, split_dim=0, concat_dim=1).sum().backward()
        comm.all_reduce(torch.ones(3), comm.all_ranks(), phase="totals").wait()
    rt.copy(x, near).sum().backward()
    return counter


def test_messages_by_phase_kind_and_group():
    for counter in run_ranks(forward_and_backward, 4):
        far, near = (2, 2), (2, 1)
        assert counter.counts("forward") == {("all_gather", far): 1, ("all_to_all", far): 1}
        assert counter.counts("backward") == {
            ("all_to_all", far): 1, ("reduce_scatter", far): 1, ("all_reduce", near): 1,
        }  # fmt: skip
        assert counter.payload_bytes("forward") == {("all_gather", far): 128, ("all_to_all", far): 128}
        assert counter.payload_bytes("totals") == {("all_reduce", (4, 1)): 12}
        assert "all_gather" in str(counter)


def through_torch(world: rt.World) -> rt.CommunicationCounter:
    group = dist.group.WORLD
    assert group is not None
    mesh = init_device_mesh("cpu", (world.size,))
    with rt.CommunicationCounter() as counter:
        functional.all_reduce(torch.ones(2), "sum", group).sum()
        DTensor.from_local(torch.ones(2), mesh, [Partial()]).redistribute(mesh, [Replicate()]).to_local()
        peer = 1 - world.rank
        works = [dist.isend(torch.ones(1), peer), dist.irecv(torch.ones(1), peer)]
        for work in works:
            assert work is not None
            work.wait()
    return counter


def test_functional_collectives_distributed_tensors_and_messages_count():
    for counter in run_ranks(through_torch, 2):
        assert counter.counts("forward") == {("all_reduce", (2, 1)): 2, ("p2p", (2, 1)): 1}
