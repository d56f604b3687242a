"""A job for `torchrun`: hand-written stages, in which one rank does what the command line says at its third forward
(`script`, `leave` and `end`: between two steps).

Arguments: RANK ACTION [PP DP TP [TIMEOUT_S]]; without a plan all ranks are stages of a pipeline.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from contextlib import nullcontext, suppress

import torch

from galvatron import runtime as rt
from galvatron.runtime import limit
from tests.runtime import small_model as small


def say(line: str) -> None:
    """One write, since the ranks share a pipe: `print` may make two, between which another rank's line comes."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    bad_rank, action = int(sys.argv[1]), sys.argv[2]
    timeout_s = float(sys.argv[6]) if len(sys.argv) > 6 else 600.0
    torch.set_num_threads(1)
    if action == "handler":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit("the user's handler"))
    if action != "stop":  # the others may be slow to answer, but they will
        limit._ANSWER_S, limit._SILENCE_S = 30.0, 60.0
    world = rt.initialize("cpu", timeout_s=600.0)
    say(f"rank {world.rank} is process {os.getpid()}")
    pp, dp, tp = map(int, sys.argv[3:6]) if len(sys.argv) > 3 else (world.size, 1, 1)
    mesh = small.make_mesh(world, pp, dp, tp)
    forwards = 0

    def before(stage: int) -> None:
        nonlocal forwards
        forwards += 1
        if forwards == 3:  # the first steps take long on a busy machine
            rt.initialize("cpu", timeout_s=timeout_s)
        if world.rank != bad_rank or forwards < 3:
            return
        if action in ("raise", "caught"):
            raise ValueError("a label is out of range")
        if action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if action == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        if action == "exit":
            sys.exit("no data left")
        if action == "gather":
            say("stuck")
            rt.all_gather(torch.ones(5), mesh.axes[0], dim=0, grad="slice")
        if action == "child":
            child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
            child.start()
            child.terminate()
            child.join()
            time.sleep(3)  # longer than it would take the signal to end this process, were it its own
            raise ValueError(f"the child ended with status {child.exitcode}")
        if action in ("sleep", "handler"):
            say("stuck")
            time.sleep(600)

    stages = small.make_stages(mesh, dp, tp, torch.float32, before)
    state = rt.ModelState(small.Model())
    executor = rt.Executor(stages, microbatches=2, model=state)
    for step in range(1_000_000):
        with suppress(ValueError) if action == "caught" else nullcontext():
            executor.forward_backward(small.batch(8))
        if world.rank == bad_rank and step == 1:
            if action == "script":
                raise OSError("the data set is gone")
            if action == "leave":
                time.sleep(600)
            if action == "end":
                break


if __name__ == "__main__":
    main()
