"""From the global batch that every rank is given to the slices that this rank's stages read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from galvatron.errors import PlanError, did_you_mean
from galvatron.runtime.slices import in_cutting_order
from galvatron.runtime.stage import BatchInput, Stage
from galvatron.schedules import Schedule


@dataclass(frozen=True)
class StageInputs:
    """What one step gives to one stage: keywords of `Stage.step`, of `Stage.forward` for each micro-batch, and of
    `Stage.epilogue`."""

    whole: dict[str, Tensor]
    microbatches: list[dict[str, Tensor]]
    epilogue: dict[str, Tensor]


def micro_batches_of(samples: int, schedule: Schedule, degree: int, limit: int, shards: int) -> int:
    """Into how many micro-batches a batch is cut: as many as the schedule and the batch allow, at most `limit`.

    Args:
        degree: the number of pipeline ranks.
        limit: that of the plan.
        shards: what a micro-batch must divide into.

    Raises:
        PlanError: the batch does not divide into shards.
    """
    if samples < 1 or samples % shards:
        raise PlanError(
            f"a batch of {samples} samples does not divide into {shards} data-parallel shards: pass a multiple of "
            f"{shards} samples, or choose another plan"
        )
    return next(m for m in range(limit, 0, -1) if samples % (m * shards) == 0 and schedule.allows(degree, m))


def read_batch(
    stages: Sequence[Stage], batch: Mapping[str, object], microbatches: int, device: torch.device
) -> dict[int, StageInputs]:
    """By stage, the batch cut into micro-batches along dim 0, then into this rank's shards, on the device.

    Inputs without samples go whole to every micro-batch.

    Raises:
        PlanError: an input is missing, or a micro-batch does not divide.
    """
    tensors = {name: value for name, value in batch.items() if isinstance(value, Tensor)}
    return {stage.index: _inputs_of(stage, tensors, microbatches, device) for stage in stages}


def _inputs_of(stage: Stage, batch: Mapping[str, Tensor], microbatches: int, device: torch.device) -> StageInputs:
    whole: dict[str, Tensor] = {}
    epilogue: dict[str, Tensor] = {}
    split: list[dict[str, Tensor]] = [{} for _ in range(microbatches)]
    for wanted in stage.batch_inputs:
        if wanted.name not in batch:
            raise PlanError(f"the batch has no input {wanted.name!r}; {did_you_mean(wanted.name, batch)}")
        value = batch[wanted.name]
        if wanted.whole:
            whole[wanted.variable] = value.to(device, non_blocking=True)
            continue
        if wanted.epilogue:
            epilogue[wanted.variable] = _shard(wanted, value).to(device, non_blocking=True)
            continue
        alike = [value] * microbatches
        parts = _micro_batches(value, microbatches, stage.epilogue_shards) if wanted.samples else alike
        for keywords, part in zip(split, parts, strict=True):
            keywords[wanted.variable] = _shard(wanted, part).to(device, non_blocking=True)
    return StageInputs(whole, split, epilogue)


def _micro_batches(value: Tensor, count: int, epilogue_shards: int) -> Sequence[Tensor]:
    """The micro-batches of a batch input.

    For an epilogue every one has a stretch of each of its shards, so that what a rank has of them, laid end to end, is
    its shard of the batch.
    """
    if epilogue_shards < 2 or count == 1:
        return value.chunk(count)
    stretches = value.unflatten(0, (epilogue_shards, count, -1))
    return [stretches[:, i].flatten(0, 1) for i in range(count)]


def batch_size(batch: Mapping[str, Tensor]) -> int:
    """The number of samples in a batch, of the inputs that hold samples.

    Raises:
        PlanError: the inputs disagree on it.
    """
    sizes = {name: value.size(0) for name, value in batch.items()}
    if len(set(sizes.values())) != 1:
        raise PlanError(f"all inputs that hold samples need the same number of samples on dim 0; got {sizes}")
    return next(iter(sizes.values()))


def _shard(wanted: BatchInput, part: Tensor) -> Tensor:
    for axis, place in in_cutting_order(wanted.placements):
        if part.size(place.dim) % (place.pieces(axis.size) * place.outer):
            raise PlanError(
                f"batch input {wanted.name!r}: {part.size(place.dim)} on dim {place.dim} of a micro-batch "
                f"do not divide over {axis.size} ranks"
            )
        part = place.take(part, axis)
    return part
