"""The steps of a job beside what was predicted of them, part by part."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from galvatron.breakdown import breakdown
from galvatron.costs.estimate import estimate_plan, setting_of
from galvatron.costs.objective import StageReport, peak_bytes
from galvatron.costs.sharded import ShardedCostModel
from galvatron.errors import GalvatronError
from galvatron.ir.cluster import Cluster
from galvatron.ir.program import Form, Program
from galvatron.ir.skew import EVEN
from galvatron.printing import text_table
from galvatron.runtime import StepMetrics, World, comm
from galvatron.units import format_bytes, format_seconds, relative_error


@dataclass(frozen=True)
class PartAccuracy:
    """Seconds of a step that go into one thing, as predicted and as measured."""

    name: str
    predicted_s: float
    measured_s: float


@dataclass(frozen=True)
class RankAccuracy:
    """The ranks of one pipeline rank, whose times are means and whose memory is the most of any.

    Attributes:
        parts: of which those measured add up to the step, but for differences between ranks.
        measured_bytes: None where the system does not tell.
    """

    parts: tuple[PartAccuracy, ...]
    predicted_bytes: int
    measured_bytes: int | None


@dataclass(frozen=True)
class Accuracy:
    """Predictions of a job's steps beside what they took: `str()` of it is a table.

    Attributes:
        predicted_s, measured_s: of a step, measured by its slowest rank.
        steps: of which each measured number is the median.
        ranks: by pipeline rank.
    """

    predicted_s: float
    measured_s: float
    steps: int
    ranks: tuple[RankAccuracy, ...]

    @property
    def error(self) -> float:
        """By how much the prediction is off, relative to what was measured: negative if it is too short."""
        return relative_error(self.predicted_s, self.measured_s)

    def __str__(self) -> str:
        head = ("", "predicted", "measured", "off")
        rows: list[tuple[str, str, str, str]] = [
            ("step", *_cells(self.predicted_s, self.measured_s)),
        ]
        for number, rank in enumerate(self.ranks):
            where = f", pipeline rank {number}" if len(self.ranks) > 1 else ""
            for part in rank.parts:
                if part.predicted_s or part.measured_s:
                    rows.append((part.name + where, *_cells(part.predicted_s, part.measured_s)))
            if rank.measured_bytes is not None:
                predicted, measured = rank.predicted_bytes, rank.measured_bytes
                cells = (format_bytes(predicted), format_bytes(measured), _off(predicted, measured))
                rows.append((f"peak of memory{where}", *cells))
        return "\n".join([*text_table(head, rows, "lrrr"), f"(medians of {self.steps} steps)"])


def _cells(predicted_s: float, measured_s: float) -> tuple[str, str, str]:
    return format_seconds(predicted_s), format_seconds(measured_s), _off(predicted_s, measured_s)


def _off(predicted: float, measured: float) -> str:
    return f"{relative_error(predicted, measured):+.1%}" if measured else ""


COMPUTING, UPDATE, WAITING = "computing", "update", "waiting for other ranks"

_PREDICTED = {
    COMPUTING: ("compute", "host", "epilogue"),
    "collectives in layers": ("awaited",),
    "parameters": ("gather", "publish"),
    "gradients": ("reduce", "sync"),
    WAITING: ("transfer", "bubble"),
    UPDATE: ("update",),
}
"""Parts of a step, and the kinds of a prediction (`galvatron.breakdown`) that are in each."""

_MEASURED = {"layers": "collectives in layers", "parameters": "parameters", "gradients": "gradients"}
"""What a rank waits for, and the part that it is in; all else is waiting for other ranks."""


@dataclass(frozen=True)
class Steps:
    """Medians of a rank's steps.

    Attributes:
        parts: seconds by part, which add up to those of the step.
    """

    step_s: float
    parts: dict[str, float]
    peak_bytes: tuple[int, ...] | None
    steps: int


def measured(metrics: Sequence[StepMetrics], samples: int) -> Steps:
    """What the steps of a rank took, as far as they are training steps on so many samples.

    Raises:
        GalvatronError: there is none.
    """
    found = [step for step in metrics if step.samples == samples and step.update_s > 0]
    if not found:
        raise GalvatronError(
            f"there are no steps to compare with: call train_step on batches of {samples} samples, twice at least, "
            "since the first step of all does not count"
        )
    columns = [_parts(step) for step in found]
    parts = {name: statistics.median(column[name] for column in columns) for name in columns[0]}
    return Steps(statistics.median(step.step_s for step in found), parts, found[-1].peak_bytes, len(found))


def _parts(step: StepMetrics) -> dict[str, float]:
    parts = dict.fromkeys(_PREDICTED, 0.0)
    parts |= {UPDATE: step.update_s, COMPUTING: step.compute_s - step.update_s}
    for what, seconds in step.waits_s.items():
        parts[_MEASURED.get(what, WAITING)] += seconds
    return parts


def compared(program: Program, cluster: Cluster, world: World, own: Steps) -> Accuracy:
    """What was measured on all ranks, beside the prediction. Collective.

    Args:
        program: planned, for the cluster by which it was sharded.
        cluster: what it runs on.
    """
    predicted_s, stages, peaks = _predicted(program, cluster)
    plan = program.required_plan
    every = [own] if world.size == 1 else comm.gather_objects(own, comm.all_ranks(), phase="accuracy")
    held = len(every) // plan.pipeline_degree
    ranks: list[RankAccuracy] = []
    for rank, peak in enumerate(peaks):
        there = every[rank * held : (rank + 1) * held]
        own_stages = [stage for stage, holder in zip(stages, plan.holders, strict=True) if holder == rank]
        parts = tuple(_beside(predicted_s, own_stages, plan.micro_batches, there))
        measured_bytes = None
        if own.peak_bytes is not None:
            measured_bytes = max(own.peak_bytes[rank * held : (rank + 1) * held])
        ranks.append(RankAccuracy(parts, peak, measured_bytes))
    return Accuracy(predicted_s, max(one.step_s for one in every), own.steps, tuple(ranks))


def _beside(
    step_s: float, stages: Sequence[StageReport], micro_batches: int, ranks: Sequence[Steps]
) -> Iterator[PartAccuracy]:
    predicted: dict[str, float] = {}
    for stage in breakdown(step_s, stages, micro_batches):
        for part in stage.times:  # all stages of a rank wait at the same time
            seconds = 0.0 if part.kind == "bubble" else predicted.get(part.kind, 0.0)
            predicted[part.kind] = seconds + part.exposed_s
    for name, kinds in _PREDICTED.items():
        mean_s = statistics.mean(rank.parts[name] for rank in ranks)
        yield PartAccuracy(name, sum(predicted.get(kind, 0.0) for kind in kinds), mean_s)


def on_cluster(planned: Program, cluster: Cluster) -> tuple[Program, ShardedCostModel]:
    """A planned program on another cluster than that by which it was sharded, and its costs there."""
    clustered = replace(planned, form=Form.CLUSTERED, candidates=(), cuts=(), plan=None)
    plan = planned.required_plan
    model = ShardedCostModel(clustered, cluster, planned.required_cluster, skew=plan.skew or EVEN, overlap=plan.overlap)
    return replace(planned, cluster=cluster), model


def _predicted(program: Program, cluster: Cluster) -> tuple[float, tuple[StageReport, ...], tuple[int, ...]]:
    """Seconds of a step of the program's plan, its stages, and the peak of each pipeline rank."""
    plan, (here, model) = program.required_plan, on_cluster(program, cluster)
    step_s, stages = estimate_plan(here, plan, model=model)
    return step_s, stages, peak_bytes(setting_of(here, plan), stages)
