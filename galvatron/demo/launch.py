"""Starts the ranks of the demonstration on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

from galvatron.errors import GalvatronError

RANKS = 4
LIMIT_S = 600
"""A demonstration that has not ended by then is stopped."""


def main(output: Path) -> None:
    """Trains the model of `galvatron.demo.model` on `RANKS` local ranks and leaves its artifacts in `output`.

    Raises:
        GalvatronError: the ranks failed or ran past the time limit; what they printed says why.
    """
    output.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={RANKS}", "--log-dir"]
    command += [str(output / "logs"), "-m", "galvatron.demo.train", str(output)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if torch.cuda.device_count() < RANKS:
        environment["CUDA_VISIBLE_DEVICES"] = ""  # all on the CPU rather than some
    process = subprocess.Popen(command, env=environment)
    try:
        code = process.wait(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        raise GalvatronError(f"the demonstration did not end within {LIMIT_S} s and was stopped") from None
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(timeout=30)
    if code != 0:
        raise GalvatronError(f"the demonstration failed with exit code {code}; its first error stands above")
