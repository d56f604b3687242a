"""Steps of a job recorded on all ranks, and written as a timeline beside the predicted one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from galvatron.bugs import ours
from galvatron.calibration.accuracy import on_cluster
from galvatron.codegen.bindings import layer_attributes
from galvatron.errors import GalvatronError
from galvatron.forms import lowered
from galvatron.ir.cluster import Cluster
from galvatron.ir.files import check_path, write_text
from galvatron.ir.program import Program
from galvatron.plain import plain_torch
from galvatron.runtime import Executor, World, comm, failure, recording
from galvatron.runtime.agreement import on_rank_0
from galvatron.runtime.clock_offset import ClockOffset, clock_offset
from galvatron.runtime.recording import Recorder
from galvatron.timelines.compare import Difference, differences, table
from galvatron.timelines.measured import CLOCKS_DIFFER, RankRecords, layer_names, measured_timeline
from galvatron.timelines.predicted import predicted_timeline
from galvatron.timelines.text import timeline_text
from galvatron.timelines.timeline import MEASURED, PREDICTED, Timeline
from galvatron.units import format_seconds


@dataclass(frozen=True)
class Profiled:
    """Steps that were measured, beside what was predicted of them: `str()` of it is a table.

    Attributes:
        predicted, measured: files of trace events.
        steps: that were measured.
        clock_error_s: by how much the clocks of ranks may differ from each other in `measured`.
        differences: by name, those that differ most first; predicted, then measured.
    """

    predicted: Path
    measured: Path
    steps: int
    clock_error_s: float
    differences: tuple[Difference, ...]

    def __str__(self) -> str:
        steps = "the step" if self.steps == 1 else f"means of {self.steps} steps"
        last = f"({steps}; clocks of ranks are aligned to {format_seconds(self.clock_error_s)}; {self.measured})"
        return f"{table(self.differences, PREDICTED, MEASURED)}\n{last}"


def check_arguments(batches: Any, steps: Any, directory: Any) -> None:
    """
    Raises:
        GalvatronError: an argument of `profile` is wrong.
    """
    if type(steps) is not int or steps < 1:
        raise GalvatronError(f"steps must be a positive whole number, not {steps!r}")
    check_path(directory, "timelines go into a directory")
    if not isinstance(batches, Iterable):
        raise GalvatronError(
            f"profile takes a batch, or several, such as those of a loader, not {type(batches).__name__}"
        )


def profiled(
    world: World,
    executor: Executor,
    planned: Program,
    cluster: Callable[[], Cluster],
    folder: Path,
    train: Callable[[], None],
) -> Profiled:
    """Records what a call trains. Collective.

    Args:
        cluster: gives that which predictions are for, once there is something to compare them with: it may have to be
            measured. Collective.
        folder: where rank 0 writes.

    Raises:
        GalvatronError: nothing was trained, or a file cannot be written.
    """
    first, recorder = clock_offset(world), executor.recorder()
    with recorder.recording():
        train()
    own = _own(executor, recorder, first.until(clock_offset(world)))
    steps = sum(record.what == recording.STEP for record in own.records)
    if not steps:
        raise GalvatronError("there are no batches to profile steps on")
    with failure.guarded("profile"):
        ranks = [own] if world.size == 1 else comm.gather_objects_on_first(own, comm.all_ranks(), phase="profile")
    with plain_torch(world.device):
        here = cluster()
        found = on_rank_0(world, "profile", lambda: _written(ranks, planned, here, folder, steps))
    if world.size > 1:
        found = comm.broadcast_object(found, comm.all_ranks(), 0, phase="profile")
    assert found is not None
    return found


def _own(executor: Executor, recorder: Recorder, offset: ClockOffset) -> RankRecords:
    """What this rank recorded, by the clock of rank 0."""
    mesh, (records, levels) = executor.mesh, recorder.read()
    return RankRecords(
        mesh.pipeline_rank,
        mesh.index,
        tuple(
            replace(record, begin_s=record.begin_s + offset.seconds, end_s=record.end_s + offset.seconds)
            for record in records
        ),
        tuple((at_s + offset.seconds, used) for at_s, used in levels),
        offset.error_s,
    )


def _written(ranks: list[RankRecords], planned: Program, cluster: Cluster, folder: Path, steps: int) -> Profiled:
    """Writes both timelines, the measured one first, which cannot be had again."""
    with ours("writing timelines", planned):
        staged = lowered(planned)
        attributes = {stage.index: layer_attributes(staged, stage) for stage in staged.stages}
        measured = measured_timeline(ranks, layer_names(staged, attributes), steps)
    measured_path = _write(measured, folder)
    with ours("predicting a timeline", planned):
        here, model = on_cluster(planned, cluster)
        predicted = predicted_timeline(here, planned.required_plan, model)
    error_s = float(measured.about[CLOCKS_DIFFER])
    return Profiled(_write(predicted, folder), measured_path, steps, error_s, differences(predicted, measured))


def _write(own: Timeline, folder: Path) -> Path:
    path = folder / f"{own.kind}.json"
    try:
        write_text(path, timeline_text(own))
    except (OSError, ValueError) as error:
        raise GalvatronError(f"timelines cannot be written into {folder}: {error}") from error
    return path
