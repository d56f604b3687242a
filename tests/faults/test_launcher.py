"""The launcher is killed at any moment of a start, and its ranks end too."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

from tests.faults.jobs import Job
from tests.faults.recovery import SCRIPT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ENDS_S = 90.0
"""A rank that looks for the store of its launcher gives up after half a minute, one that has had it after a minute."""


@pytest.mark.parametrize("seed", range(4))
def test_ranks_end_with_their_launcher(seed: int, tmp_path: Path) -> None:
    choose = random.Random(seed)
    with Job(SCRIPT, tmp_path, "dp2", 1000) as job:
        job.wait_until(lambda: len(job.ranks()) == 2)
        if seed % 2:
            job.wait_until(lambda: any(tmp_path.glob("record.*")))
        time.sleep(choose.uniform(0.0, 4.0))
        ranks = job.ranks().values()
        assert any(map(_lives, ranks)), job.output
        os.kill(job.launcher, signal.SIGKILL)
        deadline = time.monotonic() + ENDS_S
        while any(map(_lives, ranks)):
            assert time.monotonic() < deadline, job.output
            time.sleep(0.1)


def _lives(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False
