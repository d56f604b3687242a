"""A job for `torchrun`: a two-stage pipeline in which one rank does what the command line says at its third forward
(`script`: between two steps).

Arguments: RANK raise|exit|kill|sleep|script
"""

from __future__ import annotations

import os
import signal
import sys
import time

import torch

from galvatron import runtime as rt
from tests.runtime import small_model as small


def main() -> None:
    bad_rank, action = int(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    world = rt.initialize("cpu")
    forwards = 0

    def before(stage: int) -> None:
        nonlocal forwards
        forwards += 1
        if world.rank != bad_rank or forwards < 3:
            return
        if action == "raise":
            raise ValueError("a label is out of range")
        if action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if action == "exit":
            sys.exit("no data left")
        if action == "sleep":
            print("asleep", flush=True)
            time.sleep(600)

    pp, dp, tp = {2: (2, 1, 1), 4: (2, 2, 1)}[world.size]
    stage = small.make_stage(rt.build_mesh(world, small.stage_axes(pp, dp, tp)), dp, tp, torch.float32, before)
    state = rt.ModelState(small.Model())
    executor = rt.Executor(stage, microbatches=2, model=state)
    while True:
        executor.forward_backward(small.batch(8))
        if action == "script" and world.rank == bad_rank:
            raise OSError("the data set is gone")


if __name__ == "__main__":
    main()
