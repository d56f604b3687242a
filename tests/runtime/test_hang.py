"""A rank that does not come to where others wait for it: the job ends, and its error names the ranks and the place."""

from __future__ import annotations

import os
import re
import signal
import sys
from pathlib import Path

import pytest
import torch

from galvatron import runtime as rt
from galvatron.runtime import comm, limit
from galvatron.runtime.comm import now
from galvatron.runtime.diagnosis import Whereabouts, verdict, whereabouts
from galvatron.runtime.limit import Limit
from tests.ranks import RankFailure, run_ranks
from tests.runtime.jobs import LIMIT_S, errors, job

REDUCE = "all_reduce of 1.5 kB float32 over 2 ranks (0, 1) in layer block_0, forward of micro-batch 0"


@pytest.mark.parametrize(
    ("action", "plan", "first"),
    [
        ("gather", (1, 1, 2), f"in {REDUCE}"),
        (
            "sleep",
            (2, 1, 1),
            "rank 0 (stage 0) waited in the receive of backward of micro-batch 0 from rank 1; "
            "rank 1 computes in forward of micro-batch 0, at failing_job.py",
        ),
        (
            "sleep",
            (1, 1, 2),
            f"rank 0 (stage 0) waited in {REDUCE}; rank 1 computes in forward of micro-batch 0, at failing_job.py",
        ),
        (
            "stop",
            (1, 1, 2),
            f"rank 0 (stage 0) waited in {REDUCE}; rank 1 does not answer: it is stopped, overloaded or gone",
        ),
        ("leave", (1, 2, 1), "rank 1 has left the step, at failing_job.py"),
        ("end", (1, 2, 1), "rank 1 has ended"),
    ],
)
@pytest.mark.slow
def test_the_error_says_who_waited_where_and_what_the_other_does(action, plan, first):
    with job(1, action, *plan, 2.0) as (launcher, _):
        output = launcher.communicate(timeout=LIMIT_S)[0]
    # A rank that ends may be missed, or its connection may be found closed: "lost rank 1, which has ended, in".
    assert first in timeless(errors(output)[0]).replace(", which", ""), output


def different_collectives(world: rt.World, folder: str) -> None:
    sys.stderr = Path(folder, str(world.rank)).open("w")  # noqa: SIM115  # open until the process ends
    axis = rt.build_mesh(world, [[(2, 1)]]).axes[0]
    limit._ANSWER_S = 30.0  # on a busy machine
    torch.distributed.barrier()
    rt.initialize("cpu", timeout_s=1.0)
    now.stages = (0,)
    if world.rank == 0:
        rt.all_reduce(torch.ones(5), axis, grad="identity")
    else:
        rt.all_gather(torch.ones(5), axis, dim=0, grad="slice")


def test_ranks_in_different_collectives(tmp_path):
    with pytest.raises(RankFailure) as failure:
        run_ranks(different_collectives, 2, str(tmp_path))
    assert set(failure.value.errors) == {0, 1}, "both processes have ended"
    reduce = "all_reduce of 20 B float32 over 2 ranks (0, 1) in forward"
    gather = "all_gather of 40 B float32 over 2 ranks (0, 1) in forward"
    verdicts = {
        f"rank 0 (stage 0) waited in {reduce}; rank 1 is in {gather}",
        f"rank 1 (stage 0) waited in {gather}; rank 0 is in {reduce}",
    }
    lines = [line for path in tmp_path.iterdir() for line in errors(path.read_text())]
    assert verdicts & {timeless(line) for line in lines}, lines


def stopped_host_of_the_store(world: rt.World, file: str) -> None:
    axis = rt.build_mesh(world, [[(2, 1)]]).axes[0]
    if world.rank == 0:
        os.kill(os.getpid(), signal.SIGSTOP)
    sys.stderr = Path(file).open("w")  # noqa: SIM115  # open until the process ends
    rt.initialize("cpu", timeout_s=0.5)
    rt.all_reduce(torch.ones(5), axis, grad="identity")


@pytest.mark.slow
def test_a_stopped_host_of_the_store(tmp_path):
    with pytest.raises(RankFailure) as failure:
        run_ranks(stopped_host_of_the_store, 2, str(tmp_path / "1"))
    assert "the process ended" in failure.value.errors[1]
    (line,) = errors((tmp_path / "1").read_text())
    assert timeless(line).endswith("over 2 ranks (0, 1) in forward; nobody answers")


def timeless(line: str) -> str:
    return re.sub(r"waited \d+ s", "waited", line)


@pytest.mark.slow
def test_the_victim_of_a_victim_is_not_blamed():
    with job(3, "sleep", 2, 2, 1, 2.0, ranks=4) as (launcher, _):
        output = launcher.communicate(timeout=LIMIT_S)[0]
    assert errors(output)[0].endswith("in before"), output
    assert "; rank 3 computes" in errors(output)[0]


def waiting(rank: int, kind: str, *ranks: int, seconds: float = 30.0, **more) -> Whereabouts:
    size = {} if kind == "pipeline" else {"nbytes": 4_200_000, "dtype": "float32", "phase": "backward"}
    return Whereabouts(rank, "waiting", (rank // 2,), seconds, kind, ranks, **{**size, **more})


def told(asker: int, *answers: Whereabouts) -> str:
    return verdict(asker, {answer.rank: answer for answer in answers})


def test_who_is_to_blame():
    place = (0, "decoder_3", 1)
    reduce = waiting(1, "all_reduce", 0, 1, place=place)
    mine = (
        "rank 1 (stage 0) waited 30 s in all_reduce of 4.2 MB float32 over 2 ranks (0, 1) "
        "in layer decoder_3, backward of micro-batch 1; "
    )
    assert told(1, reduce) == mine + "rank 0 does not answer: it is stopped, overloaded or gone"
    outside = Whereabouts(0, "outside", code="train.py:12 in main")
    assert told(1, reduce, outside) == mine + "rank 0 has left the step, at train.py:12 in main"
    # Rank 3 waits for rank 1, which waits for rank 0.
    pipeline = waiting(
        3, "pipeline", 1, 3, senders=(1,), expected="the receive of forward of micro-batch 0 from rank 1"
    )
    assert told(3, pipeline, reduce, outside) == told(1, reduce, outside)
    # Another kind, size or place among the same ranks can be no part of what rank 1 waits for.
    for kind, other in (
        ("all_reduce", {"nbytes": 8}),
        ("all_reduce", {"place": (0, "decoder_4", 1)}),
        ("all_reduce", {"dtype": "float16"}),
        ("all_gather", {}),
    ):
        found = told(1, reduce, waiting(0, kind, 0, 1, **{"place": place, **other}))
        assert found.startswith(mine + f"rank 0 is in {kind} of")
    assert told(1, reduce, waiting(0, "all_reduce", 0, 1, place=place)).endswith("the network is slow or broken")


def test_a_wait_that_may_take_as_long_as_it_likes():
    timed = Limit(None, 0, 10.0, lambda _: None)
    timed.stop()  # the thread; time passes here
    for patient, expected in ((False, [False, False, True]), (True, [False] * 3)):
        message = comm.Message("broadcast", None, "the plan", patient=patient)
        assert [timed.is_over(message, 8.0) for _ in range(3)] == expected


def test_two_stages_that_wait_for_each_other():
    first = waiting(0, "pipeline", 0, 2, senders=(2,), expected="the receive of backward of micro-batch 0 from rank 2")
    second = waiting(2, "pipeline", 0, 2, senders=(0,), expected="the receive of forward of micro-batch 1 from rank 0")
    assert told(0, first, second).endswith("; rank 2 is in the receive of forward of micro-batch 1 from rank 0")


def test_whereabouts_travel_as_text():
    place = (1, "block", 2)
    for where in (waiting(1, "all_reduce", 0, 1, place=place), Whereabouts(3, "outside", code="a.py:3 in f")):
        assert Whereabouts.from_text(where.to_text()) == where


class Noted:
    """A communication that says, while it is started and waited for, what the rank does."""

    def __init__(self, rank: int, seen: list[str]) -> None:
        self.rank, self.seen = rank, seen

    def note(self) -> None:
        self.seen.append(whereabouts(self.rank, now, now.wait(), 0.0, busy=True).doing().split(", at ")[0])

    def start(self) -> list[comm.Waitable]:
        self.note()
        return [self]

    def wait(self) -> None:
        self.note()


def records(world: rt.World) -> list[str]:
    axis = rt.build_mesh(world, [[(world.size, 1)]]).axis(world.size, 1)
    seen: list[str] = []
    noted = Noted(world.rank, seen)

    class Gathered(torch.autograd.Function):
        """Communicates in the backward."""

        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, *gradients):
            comm.start("all_gather", axis.group, gradients, noted.start).wait()
            return gradients[0]

    x = torch.ones(3, requires_grad=True)
    handle = comm.start("all_reduce", axis.group, (x,), noted.start)
    noted.note()
    now.place = (0, "block", 1)
    handle.wait()
    now.place = None
    y = Gathered.apply(x)
    assert isinstance(y, torch.Tensor)
    rt.copy(y, axis).sum().backward()
    comm.start("all_reduce", axis.group, (x,), noted.start, "totals").wait()
    noted.note()
    return seen


def test_what_is_recorded():
    for seen in run_ranks(records, 2):
        assert seen == [
            "is in all_reduce of 12 B float32 over 2 ranks (0, 1) in forward",
            "computes",
            "is in all_reduce of 12 B float32 over 2 ranks (0, 1) in layer block, forward of micro-batch 1",
            *["is in all_gather of 12 B float32 over 2 ranks (0, 1) in backward"] * 2,
            *["is in all_reduce of 12 B float32 over 2 ranks (0, 1) for totals"] * 2,
            "computes",
        ]
