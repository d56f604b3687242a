"""Jobs that are killed and go on, and what became of their samples and losses: for tests and for figures."""

from __future__ import annotations

import json
import random
import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.faults.jobs import Job
from tests.faults.recorded_job import BATCH, EVERY, SAMPLES

SCRIPT = Path(__file__).with_name("recorded_job.py")
STEPS = SAMPLES // BATCH
"""Of an epoch."""

JOBS = [(2, "dp2-zero3"), (1, "m2/dp1"), (4, "m2/dp2-tp2"), (2, "pp2/m2/1f1b/dp1"), (4, "dp4-zero2"), (2, "tp2+sp")]
"""Ranks and plans, one after another."""


@dataclass(frozen=True)
class Outcome:
    """
    Attributes:
        kills, recovered: how many there were, and after how many the job went on.
        lost, twice: samples of an epoch that no step or several have had.
        unlike: steps that were done with a loss other than that of the undisturbed job, or with other samples than
            another time.
        redone_steps: steps that were done again.
        seconds, undisturbed_seconds: of all starts, and of the job that was not disturbed.
        output: what was printed, where the job did not come to its end.
    """

    kills: int
    recovered: int
    lost: int
    twice: int
    unlike: int
    redone_steps: int
    seconds: float
    undisturbed_seconds: float
    output: str = ""

    @property
    def is_well(self) -> bool:
        """Whether nothing was lost."""
        return self.recovered == self.kills and not (self.lost or self.twice or self.unlike)


def killed_again_and_again(folder: Path, plan: str, kills: int, choose: random.Random) -> Outcome:
    """A job whose launcher starts it again after each kill, under the same plan: losses are equal bit for bit."""
    wanted, undisturbed_s = _undisturbed(folder / "undisturbed", plan, kills, "drops")
    own = folder / "killed"
    own.mkdir()
    begun = time.monotonic()
    with Job(SCRIPT, own, plan, kills, "drops", restarts=kills) as job:
        for kill in range(kills):
            step = _reached(own) + choose.randrange(STEPS - EVERY)
            job.wait_until(lambda step=step: _reached(own) >= step)
            time.sleep(choose.uniform(0, 0.05))  # somewhere in a step or a save, or before the first one
            job.kill(choose.randrange(2), start=kill)
        ended = job.wait()
        output = "" if ended == 0 else job.output
    recovered = kills if ended == 0 else kills - 1
    return _outcome(own, wanted, kills, kills, recovered, 0.0, (time.monotonic() - begun, undisturbed_s), output)


def killed_on_other_ranks(folder: Path, kills: int, choose: random.Random) -> Outcome:
    """Jobs one after another, on other ranks and under other plans, each but the last killed in an epoch of its own."""
    epochs = kills + 1
    wanted, undisturbed_s = _undisturbed(folder / "undisturbed", JOBS[0][1], epochs)
    own = folder / "killed"
    own.mkdir()
    begun, recovered, output = time.monotonic(), 0, ""
    for number, (ranks, plan) in enumerate(JOBS[:epochs], 1):
        with Job(SCRIPT, own, plan, epochs, ranks=ranks) as job:
            if number < epochs:
                step = STEPS * number - choose.randrange(STEPS - EVERY)
                job.wait_until(lambda step=step: _reached(own) >= step)
                time.sleep(choose.uniform(0, 0.05))
                job.kill(choose.randrange(ranks))
            if (job.wait() == 0) != (number == epochs):
                output = job.output
                break
            recovered += number > 1
    return _outcome(own, wanted, epochs, kills, recovered, 1e-9, (time.monotonic() - begun, undisturbed_s), output)


def _undisturbed(folder: Path, plan: str, epochs: int, *kind: str) -> tuple[dict[int, float], float]:
    """The loss of each step, and how long it took."""
    folder.mkdir()
    begun = time.monotonic()
    with Job(SCRIPT, folder, plan, epochs, *kind) as job:
        assert job.wait() == 0, job.output
    losses = {line["step"]: float.fromhex(line["loss"]) for lines in _recorded(folder) for line in lines}
    return losses, time.monotonic() - begun


def _recorded(folder: Path) -> list[list[dict[str, Any]]]:
    """What each rank has recorded of all starts."""
    return [[json.loads(line) for line in path.read_text().splitlines()] for path in folder.glob("record.*")]


def _reached(folder: Path) -> int:
    return max((line["step"] for lines in _recorded(folder) for line in lines), default=0)


def _outcome(
    folder: Path,
    wanted: dict[int, float],
    epochs: int,
    kills: int,
    recovered: int,
    tolerance: float,
    seconds: tuple[float, float],
    output: str,
) -> Outcome:
    samples: dict[int, set[int]] = defaultdict(set)
    times: Counter[tuple[int, int]] = Counter()
    unlike: set[int] = set()
    for rank, lines in enumerate(_recorded(folder)):
        for line in lines:
            step, loss = line["step"], float.fromhex(line["loss"])
            samples[step] |= set(line["samples"])
            times[rank, step] += 1
            if abs(loss - wanted[step]) > tolerance * abs(loss) or line["epoch"] != (step - 1) // STEPS:
                unlike.add(step)
    unlike |= {step for step, found in samples.items() if len(found) != BATCH}
    given = [Counter(n for step in _steps(epoch) for n in samples[step]) for epoch in range(epochs)]
    return Outcome(
        kills,
        recovered,
        sum(1 for found in given for sample in range(SAMPLES) if not found[sample]),
        sum(count - 1 for found in given for count in found.values()),
        len(unlike),
        sum(max(times[rank, step] for rank in range(4)) - 1 for step in samples if samples[step]),
        *seconds,
        output,
    )


def _steps(epoch: int) -> range:
    return range(epoch * STEPS + 1, (epoch + 1) * STEPS + 1)
