"""Cores that ranks share."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch

from galvatron.runtime import comm
from galvatron.runtime.mesh import World


def usable_cores() -> int:
    """Cores that the processes of this machine may run on, by affinity and by the limit of their group."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, _limit() or cores)


def crowding(world: World) -> tuple[int, int]:
    """How many ranks are on the machine of rank 0, and how many of its cores they may use together. Collective.

    What a launcher calls nodes may be one machine, in containers or network namespaces.
    """
    own = _machine()
    if world.size == 1:
        return 1, usable_cores()
    is_here = own == comm.broadcast_object(own, comm.all_ranks(), 0, phase="the machine")
    counts = torch.zeros(1 + _MOST_CORES, dtype=torch.float64)
    counts[0] = is_here
    for core in os.sched_getaffinity(0) if is_here and hasattr(os, "sched_getaffinity") else ():
        counts[1 + core % _MOST_CORES] = 1
    comm.all_reduce(counts, comm.all_ranks(), phase="the cores").wait()
    cores = int((counts[1:] > 0).sum()) or usable_cores()
    return int(counts[0]), min(cores, limit) if (limit := _limit()) else cores


_MOST_CORES = 2**12


def _machine() -> str:
    """What names the running kernel."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return platform.node()


def _limit() -> int | None:
    """What the group of this process may use, in cores; None without a limit."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, round(int(quota) / int(period)))
    except (OSError, ValueError):
        return None
