"""What the benchmarks share: ranks of a job, steps timed in turn, ratios with their spread, results as JSON.

Machines are seldom idle, so the contestants take turns and are compared round by round: what slows one step down slows
its neighbours down too. CPU seconds, of all threads of all ranks, say how much work was done whatever else ran.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import socket
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import torch.distributed as dist

RESULTS = Path(__file__).parent.parent / "results"


@dataclass(frozen=True)
class Times:
    """Seconds of each timed step of one contestant: wall-clock of the slowest rank, CPU of all ranks together."""

    wall_s: list[float]
    cpu_s: list[float]


@dataclass(frozen=True)
class Spread:
    """Least, quartiles and greatest of some figures."""

    min: float
    lower: float
    median: float
    upper: float
    max: float

    @staticmethod
    def of(figures: Sequence[float]) -> Spread:
        """The spread of at least one figure."""
        several = [*figures, *figures] if len(figures) == 1 else figures
        lower, median, upper = statistics.quantiles(several, n=4, method="inclusive")
        return Spread(min(figures), lower, median, upper, max(figures))

    def __str__(self) -> str:
        return f"{self.median:.3f} ({self.min:.3f}, {self.lower:.3f}..{self.upper:.3f})"


def ratios(own: Sequence[float], peer: Sequence[float]) -> Spread:
    """The spread of own / peer, round by round."""
    return Spread.of([a / b for a, b in zip(own, peer, strict=True)])


def in_turn(steps: Mapping[str, Callable[[], Any]], rounds: int, *, warm: int = 2) -> dict[str, Times]:
    """Times of each step over rounds in which every one runs once, each round beginning with another.

    Collective in a job of several ranks, which all get the same figures.

    Args:
        warm: rounds before those that are timed.
    """
    times = {name: Times([], []) for name in steps}
    names = list(steps)
    for turn in range(warm + rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            wall_s, cpu_s = _timed(steps[name])
            if turn >= warm:
                times[name].wall_s.append(wall_s)
                times[name].cpu_s.append(cpu_s)
    return times


def _timed(step: Callable[[], Any]) -> tuple[float, float]:
    several = dist.is_initialized()
    if several:
        dist.barrier()
    wall, cpu = time.perf_counter(), time.process_time()
    step()
    slowest = torch.tensor(time.perf_counter() - wall, dtype=torch.float64)
    if several:
        dist.all_reduce(slowest, dist.ReduceOp.MAX)
    total = torch.tensor(time.process_time() - cpu, dtype=torch.float64)
    if several:
        dist.all_reduce(total)
    return float(slowest), float(total)


def on_ranks(function: Callable[..., Any], ranks: int, *args: Any) -> Any:
    """What `function(*args)` returns on rank 0 of a new job of `ranks` processes with one thread each (gloo).

    Args:
        function: at module level.

    Raises:
        RuntimeError: a rank failed; it has printed why.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = [
        context.Process(target=_rank, args=(rank, ranks, port, there, function, args)) for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    there.close()
    try:
        result = here.recv()
    except EOFError:
        raise RuntimeError(f"{function.__name__} failed on {ranks} ranks") from None
    finally:
        for process in processes:
            process.join(10)
            process.kill()
    return result


def _rank(rank: int, size: int, port: int, results: Connection, function: Callable[..., Any], args: Any) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    result = function(*args)
    dist.barrier()
    if rank == 0:
        results.send(result)
    results.close()
    dist.destroy_process_group()


def save(benchmark: str, rows: Sequence[Any], **facts: Any) -> Path:
    """Writes `results/<benchmark>.json`: the rows (dataclasses) with what they were measured on."""
    document = {
        "benchmark": benchmark,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "torch": torch.__version__,
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "load_average": os.getloadavg(),
        **facts,
        "rows": [asdict(row) for row in rows],
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{benchmark}.json"
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return path


def busy() -> str:
    """A warning when other programs had the processors too, else empty."""
    load, cpus = os.getloadavg()[0], os.cpu_count() or 1
    return f"the machine is busy: load {load:.1f} on {cpus} CPUs" if load > 1.5 * cpus else ""
