"""Jobs whose ranks run on the two nodes of an emulated network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.network import Node

LIMIT_S = 600.0
"""A job that has not ended by then is stopped."""
_FIRST_PORT = 29500


class JobFailed(Exception):
    """A rank failed or the job took too long; the message ends with what the rank printed last."""


class Launcher:
    """Starts jobs one after the other; `script --job <json>` runs a rank and rank 0's result goes to `$JOB_RESULT`.

    Args:
        script: a Python file.
        nodes: node by node, the ranks' machines; the first one's first rank is rank 0.
    """

    def __init__(self, script: Path, nodes: Sequence[Node]) -> None:
        self._script = script
        self._nodes = nodes
        self._port = _FIRST_PORT

    def run(self, job: dict[str, Any], ranks: Sequence[int]) -> dict[str, Any]:
        """The result of a job with `ranks[i]` ranks on node `i`.

        Raises:
            JobFailed: see there; no rank is left running, whatever is raised.
        """
        self._port += 1  # the last job's may still linger
        with tempfile.TemporaryDirectory() as folder:
            result = Path(folder) / "result.json"
            processes: list[subprocess.Popen[bytes]] = []
            try:
                for node, count in zip(self._nodes, ranks, strict=True):
                    for local in range(count):
                        environment = self._environment(node, len(processes), sum(ranks), local, count, result)
                        with (Path(folder) / f"{len(processes)}.log").open("wb") as log:
                            processes.append(self._start(node, job, environment, log))
                _wait(processes, Path(folder))
            finally:
                for process in processes:
                    process.kill()
                for process in processes:
                    process.wait()
            return json.loads(result.read_text())

    def _start(self, node: Node, job: dict[str, Any], environment: dict[str, str], log: Any) -> subprocess.Popen[bytes]:
        command = node.command(sys.executable, str(self._script), "--job", json.dumps(job))
        # In a session of their own, ranks do not get the terminal's Ctrl-C: it is this process that ends them.
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)

    def _environment(
        self, node: Node, rank: int, size: int, local: int, local_size: int, result: Path
    ) -> dict[str, str]:
        return {
            **os.environ,
            "RANK": str(rank),
            "WORLD_SIZE": str(size),
            "LOCAL_RANK": str(local),
            "LOCAL_WORLD_SIZE": str(local_size),
            "MASTER_ADDR": self._nodes[0].address,
            "MASTER_PORT": str(self._port),
            "GLOO_SOCKET_IFNAME": node.interface,
            "CUDA_VISIBLE_DEVICES": "",
            "JOB_RESULT": str(result),
        }


def _wait(processes: list[subprocess.Popen[bytes]], folder: Path) -> None:
    """Until all ranks have ended well.

    Raises:
        JobFailed: one did not.
    """
    deadline = time.monotonic() + LIMIT_S
    while True:
        codes = [process.poll() for process in processes]
        for rank, code in enumerate(codes):
            if code:
                last = (folder / f"{rank}.log").read_text(errors="replace").strip().splitlines()[-15:]
                raise JobFailed(f"rank {rank} ended with {code}:\n" + "\n".join(last))
        if None not in codes:
            return
        if time.monotonic() > deadline:
            raise JobFailed(f"not all ranks ended within {LIMIT_S:.0f} s")
        time.sleep(0.05)
