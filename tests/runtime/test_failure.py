"""Jobs under `torchrun` in which a rank fails or that are interrupted: how they end, and what is shown."""

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
LIMIT_S = 60


@contextmanager
def job(action: str) -> Iterator[subprocess.Popen[str]]:
    """Two ranks, of which rank 1 does `action`; in a process group of its own that must be empty at the end."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    process = subprocess.Popen(
        [*torchrun, str(ROOT / "tests/runtime/failing_job.py"), "1", action],
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


@pytest.mark.parametrize(
    ("action", "first"),
    [
        ("raise", "rank 1 failed in stage 1: ValueError: a label is out of range"),
        pytest.param("script", "rank 1 failed in the script: OSError: the data set is gone", marks=pytest.mark.slow),
        pytest.param("exit", "rank 1 failed in stage 1: SystemExit: no data left", marks=pytest.mark.slow),
        ("kill", "rank 0 lost another rank, which was killed or crashed, in stage 0"),
    ],
)
def test_the_first_error_ends_the_job_and_is_shown_first(action, first):
    with job(action) as process:
        output = process.communicate(timeout=LIMIT_S)[0]
    ours = [line for line in output.splitlines() if line.startswith("galvatron: ")]
    assert ours[0].startswith(f"galvatron: {first}"), output
    assert "[rank0]: Traceback" not in output or action == "kill", "only the rank that failed shows a traceback"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_job_leaves_no_process(number):
    with job("sleep") as process:
        assert process.stdout is not None
        while "asleep" not in (line := process.stdout.readline()):
            assert line, "the job ended by itself"
        os.killpg(process.pid, number)
        process.communicate(timeout=LIMIT_S)
