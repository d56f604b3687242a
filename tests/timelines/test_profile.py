"""Measured timelines of jobs: complete, well formed, and in the words of the predicted ones; training goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import galvatron
from galvatron import runtime as rt
from galvatron.errors import GalvatronError
from galvatron.ir.cluster import Cluster
from galvatron.profiler import local
from galvatron.runtime.clock_offset import ClockOffset, clock_offset, differ_by_at_most
from galvatron.timelines.compare import differences
from galvatron.timelines.profiling import Profiled
from galvatron.timelines.text import read_timeline
from tests.marks import some_slow
from tests.ranks import run_ranks
from tests.test_api import adamw, new_batch, new_model
from tests.timelines.traces import checked, names_of

pytestmark = pytest.mark.usefixtures("shared_captures")


def compiled(plan: str, ranks: int) -> galvatron.CompiledModel:
    where = Cluster.parse(f"a100-80g:1x{ranks}")
    return galvatron.compile(new_model(), new_batch(), plan=plan, optimizer=adamw, cluster=where)


def unlike_batches(world: rt.World, folder: str) -> int:
    own = compiled("m1/dp2", world.size)
    with pytest.raises(GalvatronError, match="batch 1 is nothing on rank 0 and there on rank 1"):
        own.profile([new_batch()] * (1 + world.rank), steps=2, directory=folder)
    with pytest.raises(
        KeyError if world.rank else GalvatronError, match="no more" if world.rank else "rank 1: KeyError"
    ):
        own.profile(breaking(world.rank), steps=2, directory=folder)
    return own.profile([new_batch()] * (2 + world.rank), steps=2, directory=folder).steps


def breaking(rank: int) -> Iterator[dict[str, torch.Tensor]]:
    yield new_batch()
    if rank == 1:
        raise KeyError("no more")
    yield new_batch()


def clocks(world: rt.World) -> tuple[ClockOffset, ClockOffset]:
    return clock_offset(world), clock_offset(world)


def profiled(world: rt.World, folder: str, plan: str) -> Profiled:
    own = compiled(plan, world.size)
    found = own.profile([new_batch(), new_batch()], steps=5, directory=folder)
    assert found.steps == 2 and own.metrics.step_s > 0
    return found


def test_what_prevents_steps_is_said_before_the_hardware_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = galvatron.compile(new_model(), new_batch(), plan="m1/dp1")
    monkeypatch.setattr(local, "local_cluster", lambda *_, **__: pytest.fail("measured"))
    with pytest.raises(GalvatronError, match="there is no optimizer"):
        own.profile(new_batch(), directory=tmp_path)
    with pytest.raises(GalvatronError, match="there are no batches"):
        own.profile([], directory=tmp_path)


QUICK = ["pp2/m2/1f1b/dp1"]
MORE = ["m2/dp2-zero3", "m1/tp2", "m2/dp2-zero2-recompute", "m2/tp2-recompute=selective", "pp2/m4/zbv/dp1", "m1/dp2"]


def test_clocks_of_one_host_are_found_to_be_the_same() -> None:
    for first, last in run_ranks(clocks, 2):
        assert abs(first.seconds) <= first.error_s < 1
        both = first.until(last)
        assert both.error_s >= max(first.error_s, last.error_s) and abs(both.seconds) <= both.error_s
    assert ClockOffset(1.0, 0.25).until(ClockOffset(2.0, 0.5)) == ClockOffset(1.5, 1.0)
    assert differ_by_at_most([0.0, 0.25, 0.5]) == 0.75 and differ_by_at_most([0.0]) == 0


@pytest.mark.slow
def test_ranks_whose_batches_end_at_another_number_are_told(tmp_path: Path) -> None:
    assert run_ranks(unlike_batches, 2, str(tmp_path), timeout=120) == [2, 2]


@pytest.mark.parametrize("plan", some_slow(QUICK, MORE))
def test_a_job_is_measured_in_the_words_of_the_prediction(plan: str, tmp_path: Path) -> None:
    found, other = run_ranks(profiled, 2, str(tmp_path), plan, timeout=120)
    assert other == found
    read = [read_timeline(path.read_text(), path.name) for path in (found.predicted, found.measured)]
    from_files = {(one.pipeline_rank, one.track, one.name): one for one in differences(*read)}
    assert len(from_files) == len(found.differences)
    for one in found.differences:
        there = from_files[one.pipeline_rank, one.track, one.name]
        rounded = 2e-9 * max(one.times)  # both ends of a slice are whole nanoseconds in a file, in both files
        assert (there.times, there.seconds) == (one.times, pytest.approx(one.seconds, abs=rounded))
    predicted, measured = (checked(path.read_text()) for path in (found.predicted, found.measured))
    assert names_of(predicted) <= names_of(measured)
    about = json.loads(found.measured.read_text())["otherData"]["galvatron"]
    assert about["steps"] == 2 and 0 < about["clocks_differ_by_at_most_s"] == found.clock_error_s < 1
    assert about["pipeline_ranks"] == ([0, 1] if "pp2" in plan else [0, 0])
    assert "measured" in str(found) and "means of 2 steps" in str(found)
    _check_computations(measured, 2)


def _check_computations(events: list[dict[str, Any]], steps: int) -> None:
    """Every layer's slices are in its computation's, and there are as many backwards as forwards."""
    compute = [event for event in events if event["cat"] == "compute"]
    whole = [event for event in compute if "micro_batch" in event["args"] and "layer" not in event["args"]]
    counts: dict[str, int] = {}
    for event in compute:
        if "layer" not in event["args"] or "micro_batch" not in event["args"]:
            continue
        counts[event["name"]] = counts.get(event["name"], 0) + 1
        inside = [
            one
            for one in whole
            if one["pid"] == event["pid"] and one["ts"] <= event["ts"] + 1e-3
            if event["ts"] + event["dur"] <= one["ts"] + one["dur"] + 1e-3
        ]
        (one,) = inside
        assert {key: one["args"][key] for key in ("stage", "micro_batch", "step")}.items() <= event["args"].items()
    for name, count in counts.items():
        if name.startswith("backward "):
            assert count == counts[name.replace("backward", "forward")]
    assert len([event for event in events if event["name"] == "step"]) == 2 * steps


def test_one_process_is_measured_and_trains_on(tmp_path: Path) -> None:
    own, other = compiled("m2/dp1-recompute", 1), compiled("m2/dp1-recompute", 1)
    for wrong, message in (
        ({"steps": 0}, "steps must be a positive whole number"),
        ({"directory": 3}, "timelines go into a directory"),
        ({"directory": "a\0b"}, "none can be called"),
        ({"batches": 3}, "profile takes a batch, or several"),
        ({"batches": []}, "there are no batches"),
        ({"batches": new_batch(2)}, "the batch has 2 samples, and the plan, which is predicted, is for 4"),
    ):
        arguments: dict[str, Any] = {"batches": new_batch(), "directory": tmp_path / "no", **wrong}
        with pytest.raises(GalvatronError, match=message):
            own.profile(**arguments)
    found = own.profile(new_batch(), steps=1, directory=tmp_path / "yes")
    assert names_of(checked(found.predicted.read_text())) <= names_of(checked(found.measured.read_text()))
    assert found.clock_error_s == 0 and "the step" in str(found)
    other.train_step(new_batch())
    for _ in range(2):
        assert torch.equal(own.train_step(new_batch()), other.train_step(new_batch()))
    assert any("recompute blocks.0" in one.name for one in found.differences)
