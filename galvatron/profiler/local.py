"""A quick measurement of the machine this process group runs on: a second or two, enough for a roofline."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from galvatron.ir.cluster import Cluster
from galvatron.ir.device import Device
from galvatron.ir.network import Level
from galvatron.ir.types import TORCH_DTYPE_NAMES

MATMUL_DTYPES = ("f64", "f32", "bf16", "f16")
MATMUL_SIZES = {"cpu": (128, 256, 512), "cuda": (1024, 2048, 4096)}
COPY_BYTES = {"cpu": 32 * 2**20, "cuda": 512 * 2**20}
MESSAGE_BYTES = (2**12, 2**16, 2**18, 2**20, 2**22)
SLICE_S = 0.04
"""Time given to each single measurement."""


def local_cluster() -> Cluster:
    """The devices of this process group as a cluster named `local:1xN`; without a process group one device.

    Every rank measures at the same time, because ranks on one machine share its cores and memory bus, and every rank
    returns rank 0's figures. The memory of a CPU machine is divided by its ranks. On several machines
    (`LOCAL_WORLD_SIZE` of torchrun smaller than the world size) the one measured link stands for both levels.
    """
    ranks = dist.get_world_size() if dist.is_initialized() else 1
    per_node = min(ranks, int(os.environ.get("LOCAL_WORLD_SIZE", ranks)))
    nodes, rest = divmod(ranks, per_node)
    if rest:
        nodes, per_node = 1, ranks
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    if ranks > 1:
        dist.barrier()
    measured = measure_device(device, per_node)
    rate, step_s = measure_link(device) if ranks > 1 else (measured.memory_bytes_per_s, measured.kernel_launch_s)
    sizes = [("node", per_node), *([("network", nodes)] if nodes > 1 else [])]
    levels = tuple(Level(name, parts, rate, step_s) for name, parts in sizes)
    cluster = Cluster(f"local:{nodes}x{per_node}", measured, levels)
    if ranks == 1:
        return cluster
    text = [cluster.to_json()]
    dist.broadcast_object_list(text, src=0)
    return Cluster.from_json(text[0])


def measure_device(device: torch.device, ranks_on_machine: int = 1) -> Device:
    """Memory, matmul rate per element type, memory bandwidth and launch time of one device."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    rates = tuple((dtype, _matmul_flop_per_s(device, dtype)) for dtype in MATMUL_DTYPES)
    return Device(
        name, _memory_bytes(device, ranks_on_machine), rates, _copy_bytes_per_s(device), _launch_s(device), device.type
    )


def measure_link(device: torch.device) -> tuple[float, float]:
    """Bandwidth in bytes/s and latency in seconds of a ring step, of the default process group.

    Collective: all ranks call it. They are fitted to all-reduces of several sizes, weighted by 1/time², so that small
    messages fix the latency and large ones the bandwidth.
    """
    ranks = dist.get_world_size()
    points = []
    for size in MESSAGE_BYTES:
        tensor = torch.zeros(size // 4, dtype=torch.float32, device=device)
        points.append((size, _seconds(lambda t=tensor: dist.all_reduce(t), device, repeats=5)))
    steps = 2 * (ranks - 1)
    latency_s, s_per_byte = _fit_line([(steps, steps * size / ranks, seconds) for size, seconds in points])
    return 1 / max(s_per_byte, 1e-15), max(latency_s, 1e-9)


def _fit_line(rows: list[tuple[float, float, float]]) -> tuple[float, float]:
    """α, β minimising the relative error of `α·a + β·b = t` over rows (a, b, t); neither is negative."""
    aa = sum((a / t) ** 2 for a, b, t in rows)
    bb = sum((b / t) ** 2 for a, b, t in rows)
    ab = sum(a * b / t**2 for a, b, t in rows)
    at, bt = sum(a / t for a, b, t in rows), sum(b / t for a, b, t in rows)
    determinant = aa * bb - ab * ab
    alpha, beta = (at * bb - bt * ab) / determinant, (bt * aa - at * ab) / determinant
    if alpha < 0:
        return 0.0, bt / bb
    return (at / aa, 0.0) if beta < 0 else (alpha, beta)


def _seconds(run: Callable[[], object], device: torch.device, repeats: int | None = None) -> float:
    """Median seconds of one call: `repeats` calls, or as many as fit `SLICE_S`; ranks must pass the same `repeats`."""
    _timed(run, device)
    times = [_timed(run, device)]
    deadline = time.perf_counter() + SLICE_S
    while len(times) < repeats if repeats is not None else time.perf_counter() < deadline:
        times.append(_timed(run, device))
    return statistics.median(times)


def _timed(run: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _matmul_flop_per_s(device: torch.device, dtype: str) -> float:
    """The median rate over square matmuls of several sizes."""
    rates = []
    for size in MATMUL_SIZES[device.type]:
        # Not constants: a GPU multiplies those up to a tenth faster, since less of it switches.
        a = torch.randn(size, size, device=device).to(getattr(torch, TORCH_DTYPE_NAMES[dtype]))
        rates.append(2 * size**3 / _seconds(lambda a=a: a @ a, device))
    return statistics.median(rates)


def _copy_bytes_per_s(device: torch.device) -> float:
    """Bytes read and written per second by a large copy."""
    size = COPY_BYTES[device.type]
    source = torch.zeros(size // 4, device=device)
    target = torch.empty_like(source)
    return 2 * size / _seconds(lambda: target.copy_(source), device)


def _launch_s(device: torch.device) -> float:
    """Seconds from one small op to the next, autograd's bookkeeping included."""
    x = torch.zeros(8, device=device, requires_grad=True)
    count = 50

    def run() -> None:
        y = x
        for _ in range(count):
            y = y + 1.0

    return _seconds(run, device) / count


def _memory_bytes(device: torch.device, ranks_on_machine: int) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:  # a container sees the machine's pages, but may use only its group's limit
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
    except (OSError, ValueError):
        limit = machine
    return min(machine, limit) // ranks_on_machine
