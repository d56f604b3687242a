"""Jobs of several ranks on this machine."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist

from galvatron import runtime as rt


def on_ranks(function: Callable[..., Any], ranks: int, *args: Any) -> Any:
    """What `function(*args)` returns on rank 0 of a new job of `ranks` processes with one thread each.

    Each rank has a GPU of its own when there are enough of them; otherwise all are on the CPU.

    Args:
        function: at module level.

    Raises:
        RuntimeError: a rank failed; it has printed why.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    port = free_port()
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


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _rank(rank: int, size: int, port: int, results: Connection, function: Callable[..., Any], args: Any) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    start_rank()
    result = function(*args)
    if size > 1:
        dist.barrier()
    if rank == 0:
        results.send(result)
    results.close()
    rt.shutdown()


def start_rank() -> None:
    """Joins the job that the environment describes, with one thread, on a GPU only if every rank here has its own."""
    if torch.cuda.device_count() < int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"])):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    torch.set_num_threads(1)
    rt.initialize()


def device() -> torch.device:
    """This rank's device, after `start_rank`."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
