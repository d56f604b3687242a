"""Predictions for published measurements, with where their seconds go."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass

import galvatron
from accuracy.programs import program_of
from accuracy.rows import Row
from galvatron.api import Estimate
from galvatron.costs.objective import StageReport


@dataclass(frozen=True)
class Breakdown:
    """Seconds of a step on the pipeline rank that waits least."""

    compute_s: float
    host_s: float
    layer_communication_s: float
    transfer_s: float
    sync_s: float
    hidden_s: float
    update_s: float
    bubble_s: float


@dataclass(frozen=True)
class Prediction:
    """What a plan is predicted to take.

    Attributes:
        peak_bytes: per pipeline rank, of a device.
        fits: whether that is within the memory of the device.
        estimate_s: how long the prediction took, in CPU seconds.
    """

    step_s: float
    peak_bytes: tuple[int, ...]
    fits: bool
    breakdown: Breakdown
    estimate_s: float


def predict(row: Row) -> Prediction:
    """The prediction for a row, from presets alone."""
    start = time.process_time()
    program = program_of(row.shape, row.precision)
    plan = row.plan(program)
    estimate = galvatron.estimate(program, plan, row.cluster, global_batch_size=row.batch)
    parts = _breakdown(plan.holders, row.micro_batches, estimate.stages)
    peaks = _peaks(row, estimate)
    fits = max(peaks) <= row.cluster.device.memory_bytes
    spent_s = time.process_time() - start
    return Prediction(estimate.step_time_s, peaks, fits, parts, spent_s)


def _peaks(row: Row, estimate: Estimate) -> tuple[int, ...]:
    """Per pipeline rank the peak of what was measured, with the framework's type of gradients."""
    peaks = list(estimate.peak_bytes)
    if row.half_gradients and len(peaks) == len(estimate.stages):
        peaks = [peak - round(s.memory.gradients / 2) for peak, s in zip(peaks, estimate.stages, strict=True)]
    reserved_bytes = row.cluster.device.reserved_bytes if row.of_process else 0
    return tuple(peak + reserved_bytes for peak in peaks)


def _breakdown(holders: tuple[int, ...], micro_batches: int, stages: tuple[StageReport, ...]) -> Breakdown:
    ranks: dict[int, list[StageReport]] = defaultdict(list)
    for holder, stage in zip(holders, stages, strict=True):
        ranks[holder].append(stage)
    own = min(ranks.values(), key=lambda held: held[0].bubble_s)
    return Breakdown(
        compute_s=micro_batches * sum(stage.compute_s for stage in own),
        host_s=micro_batches * sum(stage.host_s for stage in own),
        layer_communication_s=micro_batches * sum(stage.communication_s for stage in own),
        transfer_s=micro_batches * sum(stage.transfer_s for stage in own),
        sync_s=sum(stage.sync_s + stage.publish_s for stage in own),
        hidden_s=sum(
            stage.sync_hidden_s
            + stage.publish_hidden_s
            + micro_batches * (stage.gather_hidden_s + stage.reduce_hidden_s)
            for stage in own
        ),
        update_s=sum(stage.update_s + stage.epilogue_s for stage in own),
        bubble_s=own[0].bubble_s,
    )
