"""Bytes that a rank has, and those that are gone before the first tensor is made."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from galvatron.profiler.collectives import axis_of
from galvatron.runtime import comm
from galvatron.runtime.mesh import World


def memory_bytes(device: torch.device, ranks_on_node: int) -> int:
    """The memory of a device; of a processor one rank's share of what the machine, or this container of it, has."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:  # a container sees the machine's pages, but may use only its group's limit
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
    except (OSError, ValueError):
        limit = machine
    return min(machine, limit) // ranks_on_node


def memory_facts(world: World) -> dict[str, float]:
    """What this rank's process and one more process group take of the memory. Collective.

    `context_bytes` is what a process takes that holds no tensors: on a GPU kernels and context, on a processor the
    process itself; `communicator_bytes` what a group adds that has communicated.
    """
    device = world.device
    torch.zeros(1, device=device)
    facts = {"context_bytes": float(_taken_bytes(device))}
    if world.size > 1:
        before = _taken_bytes(device)
        with axis_of(world, world.size, 1, own_groups=True) as axis:
            for nbytes in (2**10, 2**22):
                comm.all_reduce(torch.zeros(nbytes // 4, device=device), axis.group, phase="a measurement").wait()
            _settled(device)
            facts["communicator_bytes"] = float(max(0, _taken_bytes(device) - before))
    return facts


def _taken_bytes(device: torch.device) -> int:
    """Bytes that are neither free nor the allocator's: what others hold on the same GPU is among them."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return total - free - torch.cuda.memory_reserved(device)
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _settled(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
