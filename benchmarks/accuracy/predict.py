"""Predictions for published measurements, with where their seconds go."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass, replace

from accuracy.habits import FrameworkCosts
from accuracy.programs import program_of
from accuracy.rows import Row
from galvatron.costs.estimate import estimate_plan, setting_of
from galvatron.costs.objective import StageReport, peak_bytes
from galvatron.ir.planned import fitted, in_pieces, without_plan
from galvatron.ir.strategy import Strategy


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
    program = without_plan(program_of(row.shape, row.precision), row.cluster, row.batch)
    program = replace(program, inductor=row.compiled)
    plan = fitted(row.plan(program), program, row.cluster.world_size, row.batch)
    step_s, stages = estimate_plan(program, plan, model=FrameworkCosts(in_pieces(program, plan), row.framework))
    reserved_bytes = _reserved_bytes(row) if row.of_process else 0
    peaks = tuple(peak + reserved_bytes for peak in peak_bytes(setting_of(program, plan), stages))
    parts = _breakdown(plan.holders, row.micro_batches, stages)
    fits = max(peaks) <= row.cluster.device.memory_bytes
    return Prediction(step_s, peaks, fits, parts, time.process_time() - start)


COMMUNICATOR_BYTES = 544 << 20
"""Of a communicator of two devices, once it has been used; of four it is 688 MiB (NVIDIA/nccl issue 964)."""


def _reserved_bytes(row: Row) -> int:
    """What a process takes of a device beside its tensors: the context with a first communicator, and those of the
    other groups that a rank is in: of each axis, of both neighbours in a pipeline, and of a tied embedding's ends."""
    axes = sum(axis.degree > 1 for axis in Strategy.parse(row.stages[0][0]).axes)
    between = 0 if len(row.stages) == 1 else 3
    return row.cluster.device.reserved_bytes + (axes + between) * COMMUNICATOR_BYTES


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
