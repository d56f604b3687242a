"""Steps beside what was predicted of them, and what is kept of the parts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import galvatron
from galvatron import runtime as rt
from galvatron.calibration import feedback
from galvatron.calibration.accuracy import Accuracy, PartAccuracy, RankAccuracy, measured
from galvatron.errors import GalvatronError
from galvatron.profiler import grids, local, store
from galvatron.profiler.profile import Profile
from galvatron.runtime import StepMetrics
from tests.profiler.profiles import TINY, TINY_GRIDS, TINY_MESSAGES
from tests.ranks import run_ranks
from tests.test_api import adamw, new_batch, new_model

TINY_EFFORT = replace(TINY, total_s=30.0)


def step(**changes: Any) -> StepMetrics:
    waits = {"layers": 1.0, "gradients": 0.5, "totals": 0.25, "pipeline": 2.0}
    figures = {"loss": 1.0, "gradient_norm": None, "step_s": 10.0, "compute_s": 6.25, "bubble_s": 2.0}
    figures |= {"exposed_communication_s": 1.75, "peak_bytes": (7,), "samples": 8, "tokens": None}
    return StepMetrics(**(figures | {"waits_s": waits, "update_s": 0.75} | changes))


def test_measured_parts_add_up() -> None:
    own = measured([step(), step(step_s=30.0, compute_s=26.25), step()], 8)
    assert (own.step_s, own.steps) == (10.0, 3)
    assert sum(own.parts.values()) == own.step_s
    assert own.parts == {
        "computing": 5.5, "collectives in layers": 1.0, "parameters": 0.0, "gradients": 0.5,
        "waiting for other ranks": 2.25, "update": 0.75,
    }  # fmt: skip


@pytest.mark.parametrize("steps", [[], [step(samples=4)], [step(update_s=0.0)]])
def test_other_steps_say_nothing(steps: list[StepMetrics]) -> None:
    with pytest.raises(GalvatronError, match="no steps to compare with: call train_step on batches of 8 samples"):
        measured(steps, 8)


def test_a_table() -> None:
    ranks = tuple(
        RankAccuracy((PartAccuracy("computing", 1.0, 2.0), PartAccuracy("gradients", 0.0, 0.0)), 2**30, measured_bytes)
        for measured_bytes in (2**29, None)
    )
    accuracy = Accuracy(0.9, 1.0, 7, ranks)
    assert accuracy.error == pytest.approx(-0.1)
    assert str(accuracy) == "\n".join(
        [
            "                                 predicted  measured      off",
            "step                                900 ms       1 s   -10.0%",
            "computing, pipeline rank 0             1 s       2 s   -50.0%",
            "peak of memory, pipeline rank 0      1 GiB   512 MiB  +100.0%",
            "computing, pipeline rank 1             1 s       2 s   -50.0%",
            "(medians of 7 steps)",
        ]
    )


def trained(world: rt.World, folder: str, plan: str) -> tuple[str, Profile, bool]:
    grids.GRIDS["cpu", "tiny"], grids.MESSAGE_BYTES["tiny"] = TINY_GRIDS, TINY_MESSAGES
    local.GLANCE = TINY  # pyright: ignore[reportPrivateImportUsage]
    feedback.EFFORT = TINY_EFFORT
    compiled = galvatron.compile(new_model(), new_batch(), plan=plan, optimizer=adamw, cache_dir=folder, calibrate=True)
    with pytest.raises(GalvatronError, match="no steps to compare with"):
        compiled.accuracy()
    for _ in range(3):
        loss = compiled.train_step(new_batch())
    accuracy = compiled.accuracy()
    assert accuracy.steps == 2 and accuracy.predicted_s > 0 < accuracy.measured_s
    for rank in accuracy.ranks:
        assert sum(part.measured_s for part in rank.parts) <= accuracy.measured_s * 1.000001
        assert sum(part.predicted_s for part in rank.parts) == pytest.approx(accuracy.predicted_s)
    assert len(accuracy.ranks) == compiled.plan.pipeline_degree
    (path,) = store.stored_files(folder)
    return str(accuracy), store.load(path)[0], bool(loss.isfinite())


@pytest.mark.one_in(2)
@pytest.mark.parametrize("plan", ["pp1/m2/dp1-tp2", "pp2/m2/1f1b/dp1"])
def test_a_job_says_how_it_was_predicted_and_keeps_what_it_is_made_of(plan: str, tmp_path: Path) -> None:
    (text, profile, finite), (other, _, _) = run_ranks(trained, 2, str(tmp_path), plan, timeout=120)
    assert finite and text.splitlines()[0] == other.splitlines()[0]
    assert "computing" in text and "update" in text
    assert profile.classes and all("under" in time.name for time in profile.classes)
    assert profile.of("product"), "what accuracy predicts by was taken where there was no profile"
    sent = {m.size("bytes") for m in profile.of("all_reduce")} - set(map(float, TINY_MESSAGES))
    assert bool(sent) == ("tp2" in plan), "sizes that the layers send, beside those of the hardware's profile"
