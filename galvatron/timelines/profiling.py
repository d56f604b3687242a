"""Steps of a job recorded on all ranks, and written as a timeline beside the predicted one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice, repeat
from pathlib import Path
from typing import Any

from galvatron.bugs import ours
from galvatron.calibration.accuracy import on_cluster
from galvatron.codegen.bindings import layer_attributes
from galvatron.errors import GalvatronError
from galvatron.forms import lowered
from galvatron.ir.cluster import Cluster
from galvatron.ir.files import write_text
from galvatron.ir.program import Program
from galvatron.plain import plain_torch
from galvatron.runtime import Executor, World, comm, recording
from galvatron.runtime.agreement import on_rank_0
from galvatron.runtime.alignment import ClockOffset, clock_offset
from galvatron.runtime.recording import Recorder
from galvatron.timelines.compare import Difference, differences, table
from galvatron.timelines.measured import RankRecords, layer_names, measured_timeline
from galvatron.timelines.predicted import predicted_timeline
from galvatron.timelines.timeline import MEASURED, PREDICTED
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


def chosen(batches: Any, steps: Any, directory: Any) -> Iterator[Any]:
    """So many batches.

    Raises:
        GalvatronError: an argument of `profile` is wrong.
    """
    if type(steps) is not int or steps < 1:
        raise GalvatronError(f"steps must be a positive whole number, not {steps!r}")
    if not isinstance(directory, (str, os.PathLike)):
        raise GalvatronError(f"timelines go into a directory, given by its path, not {type(directory).__name__}")
    if isinstance(batches, (Mapping, tuple)):
        return repeat(batches, steps)
    if not isinstance(batches, Iterable):
        raise GalvatronError(
            f"profile takes a batch, or several, such as those of a loader, not {type(batches).__name__}"
        )
    return islice(batches, steps)


def profiled(
    world: World, executor: Executor, planned: Program, cluster: Cluster, folder: Path, train: Callable[[], None]
) -> Profiled:
    """Records what a call trains. Collective.

    Args:
        cluster: that predictions are for.
        folder: where rank 0 writes.

    Raises:
        GalvatronError: nothing was trained, or a file cannot be written.
    """
    offset, recorder = clock_offset(world), executor.recorder()
    with recorder.recording():
        train()
    ranks = _of_all_ranks(world, _own(executor, recorder, offset))
    with plain_torch(world.device):
        found = on_rank_0(world, "profile", lambda: _written(ranks, planned, cluster, folder))
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


def _of_all_ranks(world: World, own: RankRecords) -> list[RankRecords]:
    """What every rank recorded, on rank 0; the others keep their own alone. Collective."""
    if world.size == 1:
        return [own]
    found: list[RankRecords] = []
    for rank in range(world.size):
        sent = own if world.rank == rank else None
        there = comm.broadcast_object(sent, comm.all_ranks(), rank, phase="profile")
        found += [there] if world.rank == 0 else []
    return found


def _written(ranks: list[RankRecords], planned: Program, cluster: Cluster, folder: Path) -> Profiled:
    """Writes both timelines."""
    steps = sum(record.what == recording.STEP for record in ranks[0].records)
    if not steps:
        raise GalvatronError("there are no batches to profile steps on")
    with ours("writing timelines", planned):
        staged = lowered(planned)
        attributes = {stage.index: layer_attributes(staged, stage) for stage in staged.stages}
        measured = measured_timeline(ranks, layer_names(staged, attributes), steps)
        here, model = on_cluster(planned, cluster)
        predicted = predicted_timeline(here, planned.required_plan, model)
    paths = {one.kind: folder / f"{one.kind}.json" for one in (predicted, measured)}
    try:
        for one in (predicted, measured):
            write_text(paths[one.kind], one.to_json())
    except (OSError, ValueError) as error:
        raise GalvatronError(f"timelines cannot be written into {folder}: {error}") from error
    error_s = max(rank.error_s for rank in ranks)
    return Profiled(paths[PREDICTED], paths[MEASURED], steps, error_s, differences(predicted, measured))
