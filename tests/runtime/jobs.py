"""Real jobs under `torchrun` for tests of how they end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parents[2]
LIMIT_S = 90


@contextmanager
def job(
    *arguments: object, ranks: int = 2, looks_each_s: float = 0.1
) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """`failing_job.py` with these arguments: the launcher, and the processes of its ranks, which must all be gone at
    the end. What they print is in the launcher's `stdout`.

    Args:
        looks_each_s: how often the launcher looks after its ranks, to end the others when one has ended.
    """
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    torchrun += ["--monitor-interval", str(looks_each_s)]
    launcher = subprocess.Popen(
        [*torchrun, str(ROOT / "tests/runtime/failing_job.py"), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    processes: dict[int, int] = {}
    limit = threading.Timer(LIMIT_S, launcher.terminate)  # a rank that never comes ends the wait for its line
    limit.start()
    try:
        while len(processes) < ranks:
            words = wait_for(launcher.stdout, " is process ").split()
            processes[int(words[1])] = int(words[-1])
        limit.cancel()
        yield launcher, [processes[rank] for rank in range(ranks)]
        assert launcher.returncode not in (0, None)
        deadline = time.monotonic() + 5
        while any(map(_lives, processes.values())) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not [pid for pid in processes.values() if _lives(pid)]
    finally:
        limit.cancel()
        for pid in (launcher.pid, *processes.values()):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        launcher.wait()


def wait_for(stdout: IO[str] | None, words: str) -> str:
    """The next line of a job's output with these words in it."""
    assert stdout is not None
    seen = []
    while words not in (line := stdout.readline()):
        seen.append(line)
        assert line, "the job ended by itself: " + "".join(seen)
    return line


def errors(output: str) -> list[str]:
    """The lines that the runtime printed about the end of a job, in order."""
    return [line.removeprefix("galvatron: ") for line in output.splitlines() if line.startswith("galvatron: ")]


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False
