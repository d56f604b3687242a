"""What this job runs on, in the words by which a profile is found again."""

from __future__ import annotations

import os
import platform
from datetime import datetime, timezone
from pathlib import Path

import torch
import torch.distributed as dist

from galvatron.profiler.cores import usable_cores
from galvatron.profiler.memory import memory_bytes
from galvatron.profiler.profile import Environment
from galvatron.runtime import comm
from galvatron.runtime.mesh import World


def environment_of(world: World) -> Environment:
    """The environment of this rank."""
    nodes, per_node = node_shape(world)
    device = world.device
    return Environment(
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        kind=device.type,
        memory_bytes=memory_bytes(device, per_node),
        cores=usable_cores(),
        threads=torch.get_num_threads(),
        nodes=nodes,
        devices_per_node=per_node,
        backend=_backend(world),
        torch=torch.__version__,
    )


def agreed_environment(world: World) -> tuple[Environment, str]:
    """The environment of the job and the date, as rank 0 tells all: devices of a cluster are equal. Collective."""
    mine = environment_of(world), datetime.now(timezone.utc).isoformat(timespec="seconds")
    return mine if world.size == 1 else comm.broadcast_object(mine, comm.all_ranks(), 0, phase="the environment")


def node_shape(world: World) -> tuple[int, int]:
    """Nodes and ranks on each, as torchrun tells (`LOCAL_WORLD_SIZE`); one node where these do not divide."""
    per_node = min(world.size, int(os.environ.get("LOCAL_WORLD_SIZE", world.size)))
    nodes, rest = divmod(world.size, per_node)
    return (1, world.size) if rest else (nodes, per_node)


def _backend(world: World) -> str:
    if world.size == 1:
        return "none"
    group = dist.group.WORLD
    assert group is not None
    return group._get_backend(world.device).name()


def _processor() -> str:
    """The processor's name as the machine tells it, such as `AMD EPYC 9654`."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip() or platform.machine()
    except OSError:
        pass
    return platform.processor() or platform.machine() or "cpu"


def device_facts(device: torch.device) -> dict[str, float]:
    """What a GPU says of how it computes: its multiprocessors, and its compute capability."""
    if device.type != "cuda":
        return {}
    properties = torch.cuda.get_device_properties(device)
    return {
        "multiprocessors": float(properties.multi_processor_count),
        "capability": properties.major + properties.minor / 10,
    }
