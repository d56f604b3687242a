"""Jobs under `torchrun` in which a rank fails or that are interrupted: how they end, and what is shown."""

from __future__ import annotations

import os
import signal

import pytest

from tests.runtime.jobs import LIMIT_S, errors, job


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
    with job(1, action) as process:
        output = process.communicate(timeout=LIMIT_S)[0]
    assert errors(output)[0].startswith(first), output
    assert "[rank0]: Traceback" not in output or action == "kill", "only the rank that failed shows a traceback"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_job_leaves_no_process(number):
    with job(1, "sleep") as process:
        assert process.stdout is not None
        while "asleep" not in (line := process.stdout.readline()):
            assert line, "the job ended by itself"
        os.killpg(process.pid, number)
        process.communicate(timeout=LIMIT_S)
