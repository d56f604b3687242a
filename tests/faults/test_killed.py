"""A rank is killed at any moment, and the run goes on: no sample is lost or comes twice, and losses are those of a run
that nothing has disturbed."""

from __future__ import annotations

import json
import random
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from tests.faults.jobs import Job
from tests.faults.recorded_job import BATCH, EVERY, SAMPLES

SCRIPT = Path(__file__).with_name("recorded_job.py")
STEPS = SAMPLES // BATCH
"""Of an epoch."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def recorded(folder: Path) -> list[dict[str, Any]]:
    """What all ranks have recorded of all starts."""
    return [json.loads(line) for path in folder.glob("record.*") for line in path.read_text().splitlines()]


def reached(folder: Path) -> int:
    return max((line["step"] for line in recorded(folder)), default=0)


def undisturbed(folder: Path, plan: str, epochs: int, *kind: str) -> dict[int, float]:
    """The loss of each step."""
    folder.mkdir()
    with Job(SCRIPT, folder, plan, epochs, *kind) as job:
        assert job.wait() == 0, job.output
    return {line["step"]: float.fromhex(line["loss"]) for line in recorded(folder)}


def check(folder: Path, wanted: dict[int, float], epochs: int, tolerance: float) -> None:
    """Every step had one set of samples whenever it was done, and these are all, once in each epoch."""
    given: dict[int, dict[tuple[int, ...], set[int]]] = defaultdict(lambda: defaultdict(set))
    epoch_of: dict[int, int] = {}
    for line in recorded(folder):
        loss = float.fromhex(line["loss"])
        assert abs(loss - wanted[line["step"]]) <= tolerance * abs(loss), line["step"]
        assert epoch_of.setdefault(line["step"], line["epoch"]) == line["epoch"]
    assert sorted(epoch_of) == list(range(1, epochs * STEPS + 1)), "a step is missing"
    for rank in folder.glob("record.*"):
        for line in map(json.loads, rank.read_text().splitlines()):
            given[line["step"]][tuple(line["samples"])] |= set(line["samples"])
    for epoch in range(epochs):
        found: list[int] = []
        for step in range(epoch * STEPS + 1, (epoch + 1) * STEPS + 1):
            assert epoch_of[step] == epoch
            samples = set().union(*given[step].values())
            assert len(samples) == BATCH, f"step {step} was done with other samples"
            found += samples
        assert sorted(found) == list(range(SAMPLES)), f"epoch {epoch}"


@pytest.mark.parametrize("plan", ["m2/dp2-zero2", "pp2/m2/1f1b/dp1"])
def test_of_twenty_kills_all_are_recovered_from(plan: str, tmp_path: Path) -> None:
    kills, epochs = 20, 20
    wanted = undisturbed(tmp_path / "undisturbed", plan, epochs, "drops")
    folder, choose = tmp_path / "killed", random.Random(plan)
    folder.mkdir()
    with Job(SCRIPT, folder, plan, epochs, "drops", restarts=kills) as job:
        for kill in range(kills):
            step = reached(folder) + choose.randrange(STEPS - EVERY)
            job.wait_until(lambda step=step: reached(folder) >= step)
            time.sleep(choose.uniform(0, 0.05))  # somewhere in a step or a save, or before the first one
            job.kill(choose.randrange(2), start=kill)
        assert job.wait() == 0, job.output
    assert len(recorded(folder)) > 2 * len(wanted), "nothing was done twice"
    check(folder, wanted, epochs, 0.0)


JOBS = [(2, "dp2-zero3"), (1, "m2/dp1"), (4, "m2/dp2-tp2"), (2, "pp2/m2/1f1b/dp1"), (4, "dp4-zero2"), (2, "tp2+sp")]
"""Ranks and plans, one after another."""


def test_goes_on_with_other_numbers_of_ranks(tmp_path: Path) -> None:
    wanted = undisturbed(tmp_path / "undisturbed", "dp2-zero3", len(JOBS))
    folder, choose = tmp_path / "killed", random.Random(0)
    folder.mkdir()
    for number, (ranks, plan) in enumerate(JOBS, 1):
        with Job(SCRIPT, folder, plan, len(JOBS), ranks=ranks) as job:
            if number == len(JOBS):
                assert job.wait() == 0, job.output
                break
            step = STEPS * number - choose.randrange(STEPS - EVERY)
            job.wait_until(lambda step=step: reached(folder) >= step)
            time.sleep(choose.uniform(0, 0.05))
            job.kill(choose.randrange(ranks))
            assert job.wait() != 0
    check(folder, wanted, len(JOBS), 1e-9)
