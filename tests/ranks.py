"""Run test functions on several gloo ranks: persistent processes, one set per world size, reused by the whole session.

A case costs milliseconds once its set runs: the processes are forked from a server that has torch imported, stay
between cases, and keep their process groups. A case that hangs, kills a rank, or fails on some ranks only makes the set
be replaced before the next case.

    def two_ranks(world, factor):           # at module level; runs on every rank
        return world.rank * factor

    assert run_ranks(two_ranks, 2, 10) == [0, 10]
"""

from __future__ import annotations

import atexit
import gc
import importlib.util
import multiprocessing
import os
import pickle
import socket
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from types import ModuleType
from typing import Any

from tests import captures

PRELOAD = [
    "torch", "torch.distributed.pipelining", "torch.export._trace", "galvatron.runtime", "galvatron.api",
    "galvatron.passes.frontend.cluster_layers", "galvatron.passes.lower.shard", "galvatron.passes.lower.split_stages",
]  # fmt: skip
"""What the server of the processes imports before it forks them, once for all of them."""


class RankFailure(AssertionError):
    """A rank raised, died or hung; the message starts with the first rank that did, `errors` maps rank to its text."""

    def __init__(self, message: str, errors: dict[int, str]) -> None:
        super().__init__(message)
        self.errors = errors


def run_ranks(function: Callable[..., Any], world_size: int, *args: Any, timeout: float = 60.0) -> list[Any]:
    """Call `function(world, *args)` on every rank of a job of `world_size` and return the results in rank order.

    Args:
        function: a module-level function of a test file; found again by file and name in the rank processes.
        args: plain picklable values (tensors too, but no instances of classes that test files define).
        timeout: seconds for the whole case.

    Raises:
        RankFailure: what went wrong on the first rank that failed, with its traceback.
    """
    ranks = _sets.get(world_size)
    if ranks is None:
        ranks = _sets[world_size] = _RankSet(world_size)
    try:
        results, errors = ranks.run(function, args, timeout)
    except BaseException:
        _discard(world_size)
        raise
    if not ranks.consistent:
        _discard(world_size)
    if errors:
        first = next(iter(errors))
        raise RankFailure(f"rank {first} of {world_size}: {errors[first]}", errors)
    return results


def close() -> None:
    """End all rank processes."""
    for size in list(_sets):
        _discard(size)


atexit.register(close)


class _RankSet:
    """The processes of one world size."""

    def __init__(self, size: int) -> None:
        os.environ["OMP_NUM_THREADS"] = "1"
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
        port = free_port()
        self.size = size
        self.consistent = True
        self.connections: list[Connection] = []
        self.processes = []
        for rank in range(size):
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(rank, size, port, there, sys.path), daemon=True)
            process.start()
            there.close()
            self.connections.append(here)
            self.processes.append(process)

    def run(
        self, function: Callable[..., Any], args: tuple[Any, ...], timeout: float
    ) -> tuple[list[Any], dict[int, str]]:
        request = pickle.dumps((function.__code__.co_filename, function.__qualname__, args, captures.shared))
        for connection in self.connections:
            connection.send_bytes(request)
        results: list[Any] = [None] * self.size
        errors: dict[int, str] = {}
        kinds: set[str] = set()
        open_ranks = {connection: rank for rank, connection in enumerate(self.connections)}
        deadline = time.monotonic() + timeout
        while open_ranks:
            ready = wait(list(open_ranks), max(0.0, deadline - time.monotonic()))
            if not ready:
                for rank in open_ranks.values():
                    errors[rank] = f"no answer within {timeout} s"
                kinds.update(("hang", "other"))
                break
            for connection in ready:
                assert isinstance(connection, Connection)
                rank = open_ranks.pop(connection)
                try:
                    kind, results[rank], usable = pickle.loads(connection.recv_bytes())
                    self.consistent &= usable
                except EOFError:
                    self.processes[rank].join(5)
                    kind, results[rank] = "died", f"the process ended with status {self.processes[rank].exitcode}"
                kinds.add(kind)
                if kind != "result":
                    errors[rank] = results[rank]
                    # The others may wait for this one forever.
                    deadline = min(deadline, time.monotonic() + 10.0)
        self.consistent &= len(kinds) == 1 and "died" not in kinds
        return results, errors

    def end(self) -> None:
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join()
        for connection in self.connections:
            connection.close()


_sets: dict[int, _RankSet] = {}


def _discard(size: int) -> None:
    _sets.pop(size).end()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _serve(rank: int, size: int, port: int, connection: Connection, path: list[str]) -> None:
    """The main loop of one rank process."""
    sys.path[:] = path
    # A rank may start workers, as a training process does: by a fork.
    multiprocessing.set_start_method("fork", force=True)
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]  # it is there
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    import torch

    from galvatron import runtime
    from galvatron.runtime import failure

    torch.set_num_threads(1)
    world = runtime.initialize("cpu", timeout_s=60.0)
    gc.freeze()  # `compile` collects garbage: not in what is imported
    while True:
        try:
            file, name, args, shared = pickle.loads(connection.recv_bytes())
        except EOFError:
            return
        try:
            gc.collect()
            gc.freeze()
            torch.manual_seed(0)
            function: Any = _load(file)
            for part in name.split("."):
                function = getattr(function, part)
            with captures.sharing(shared):
                message = pickle.dumps(("result", function(world, *args), not failure.job_failed()))
        except BaseException as error:
            message = pickle.dumps((type(error).__name__, traceback.format_exc(), not failure.job_failed()))
        connection.send_bytes(message)


def _load(file: str) -> ModuleType:
    """The module at `file`, under a name of its own, so that equal file names in different folders do not meet."""
    name = "ranks_" + file.replace(os.sep, "_").removesuffix(".py")
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]
