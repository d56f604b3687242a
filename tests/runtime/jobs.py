"""Real jobs under `torchrun` for tests of how they end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIMIT_S = 90


@contextmanager
def job(*arguments: object, ranks: int = 2) -> Iterator[subprocess.Popen[str]]:
    """`failing_job.py` with these arguments, in a process group of its own that must be empty at the end."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    process = subprocess.Popen(
        [*torchrun, str(ROOT / "tests/runtime/failing_job.py"), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
        assert process.returncode not in (0, None)
        with pytest.raises(ProcessLookupError):
            os.killpg(process.pid, 0)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def errors(output: str) -> list[str]:
    """The lines that the runtime printed about the end of a job, in order."""
    return [line.removeprefix("galvatron: ") for line in output.splitlines() if line.startswith("galvatron: ")]
