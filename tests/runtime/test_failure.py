"""Jobs under `torchrun` in which a rank fails or that are interrupted: how they end, and what is shown."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time

import pytest
from torch._C._distributed_c10d import HashStore

from galvatron import runtime as rt
from galvatron.errors import RankError
from galvatron.runtime import failure
from galvatron.runtime.comm import now
from tests.marks import some_slow
from tests.ranks import run_ranks
from tests.runtime.jobs import LIMIT_S, errors, job, wait_for

KILL_S = 28
"""Less than the time after which the launcher kills what does not end by itself."""


@pytest.mark.parametrize(
    ("action", "first"),
    some_slow(
        [("raise", "rank 1 failed in stage 1: ValueError: a label is out of range")],
        [
            ("kill", "rank 0 lost another rank, which was killed or crashed, in stage 0"),
            ("script", "rank 1 failed in the script: OSError: the data set is gone"),
            ("exit", "rank 1 failed in stage 1: SystemExit: no data left"),
            ("child", "rank 1 failed in stage 1: ValueError: the child ended with status -15"),
        ],
    ),
)
def test_the_first_error_ends_the_job_and_is_shown_first(action, first):
    # A rank that is killed says nothing: the launcher must not end the other before it comes to communicate.
    with job(1, action, looks_each_s=3.0 if action == "kill" else 0.1) as (launcher, _):
        output = launcher.communicate(timeout=LIMIT_S)[0]
    assert errors(output) and errors(output)[0].startswith(first), output
    assert "[rank0]: Traceback" not in output, "only the rank that failed shows a traceback"


@pytest.mark.slow
def test_a_job_whose_script_passes_over_an_error_ends_with_that_error():
    with job(1, "caught") as (launcher, _):
        output = launcher.communicate(timeout=LIMIT_S)[0]
    first = "rank 1 failed in stage 1: ValueError: a label is out of range"
    assert errors(output)[0].startswith(first), output
    assert f"rank 1 stops: this job cannot go on: {first}" in errors(output), output


@pytest.mark.parametrize(
    ("number", "to", "action"),
    some_slow(
        [(signal.SIGINT, "launcher", "gather")],  # each rank waits in C++ for the other, where Python runs no handler
        [
            (signal.SIGTERM, "launcher", "gather"),
            (signal.SIGINT, "launcher", "sleep"),
            (signal.SIGTERM, "launcher", "sleep"),
            (signal.SIGINT, "rank 0", "gather"),
            (signal.SIGTERM, "rank 0", "gather"),
            (signal.SIGINT, "rank 1", "sleep"),
            (signal.SIGTERM, "rank 1", "handler"),
        ],
    ),
)
def test_an_interrupted_job_leaves_no_process(number, to, action):
    with job(1, action, 1, 1, 2) as (launcher, ranks):
        wait_for(launcher.stdout, "stuck")
        os.kill(launcher.pid if to == "launcher" else ranks[int(to[-1])], number)
        output = launcher.communicate(timeout=KILL_S)[0]
    assert "forcefully" not in output
    verb = {signal.SIGINT: "was", signal.SIGTERM: "was ended by SIGTERM"}[number]
    if action == "handler":
        assert "SystemExit: the user's handler" in errors(output)[0]
    elif to == "launcher":
        assert verb in errors(output)[0]
    else:
        assert errors(output)[0].startswith(f"{to} {verb}")


def test_who_comes_while_a_failure_is_told_waits_to_hear_of_it(monkeypatch, capsys):
    class Slow(failure._Watch):
        def _tell(self, line):
            telling.set()
            time.sleep(0.2)
            super()._tell(line)

    now.reset()  # of what a test before has left in this process
    telling = threading.Event()
    active = Slow(HashStore(), 0, 2, LIMIT_S)
    monkeypatch.setattr(failure, "_watch", active)
    thread = threading.Thread(target=failure._report, args=(active, "a step", ValueError("out of range")))
    thread.start()
    assert telling.wait(LIMIT_S)
    words = "cannot go on: rank 0 failed in a step: ValueError: out of range"
    with pytest.raises(RankError, match=words), failure.guarded("another step"):
        pass
    thread.join()
    active.stop()
    assert capsys.readouterr().err == "galvatron: rank 0 failed in a step: ValueError: out of range\n"


def shows_an_error() -> None:
    """As multiprocessing does in its threads, when who reads a tensor of a worker has gone."""
    sys.excepthook(EOFError, EOFError(), None)


def has_a_child(world: rt.World) -> str | None:
    child = multiprocessing.get_context("fork").Process(target=shows_an_error)
    child.start()
    child.join()
    thread = threading.Thread(target=shows_an_error)
    thread.start()
    thread.join()
    rt.agree(world, "both have ended")
    assert failure._watch is not None
    return failure._watch.poll()


def test_what_a_child_or_a_library_shows_is_no_failure_of_the_job():
    """A child has its parent's connection to the store as well, and would take the answers."""
    assert run_ranks(has_a_child, 2) == [None, None]
