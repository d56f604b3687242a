"""From the global batch that every rank is given to the slices that this rank's stage reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from galvatron.errors import PlanError, did_you_mean
from galvatron.runtime.collectives import take_part
from galvatron.runtime.stage import BatchInput, Stage


@dataclass(frozen=True)
class StageInputs:
    """What one step gives to one stage.

    Attributes:
        samples: the global batch size.
        whole: keywords of `Stage.step`.
        microbatches: keywords of `Stage.forward`, one mapping per micro-batch.
    """

    samples: int
    whole: dict[str, Tensor]
    microbatches: list[dict[str, Tensor]]


def read_batch(stage: Stage, batch: Mapping[str, Tensor], microbatches: int, device: torch.device) -> StageInputs:
    """Cut the batch into micro-batches along dim 0, then into this rank's shards, and bring those to the device.

    Raises:
        PlanError: an input is missing, the inputs disagree on the batch size, or the batch does not divide.
    """
    samples = _batch_size(batch)
    if samples % microbatches:
        raise PlanError(
            f"a batch of {samples} samples does not divide into {microbatches} micro-batches: "
            f"pass a multiple of {microbatches} samples, or choose another plan"
        )
    whole: dict[str, Tensor] = {}
    split: list[dict[str, Tensor]] = [{} for _ in range(microbatches)]
    for wanted in stage.batch_inputs:
        if wanted.name not in batch:
            raise PlanError(f"the batch has no input {wanted.name!r}; {did_you_mean(wanted.name, batch)}")
        value = batch[wanted.name]
        if wanted.whole:
            whole[wanted.variable] = value.to(device, non_blocking=True)
            continue
        for keywords, part in zip(split, value.chunk(microbatches), strict=True):
            keywords[wanted.variable] = _shard(wanted, part).to(device, non_blocking=True)
    return StageInputs(samples, whole, split)


def _batch_size(batch: Mapping[str, Tensor]) -> int:
    sizes = {name: value.size(0) for name, value in batch.items() if isinstance(value, Tensor) and value.dim() > 0}
    if len(set(sizes.values())) != 1:
        raise PlanError(f"all batch inputs need the same number of samples on dim 0; got {sizes}")
    return next(iter(sizes.values()))


def _shard(wanted: BatchInput, part: Tensor) -> Tensor:
    for axis, place in wanted.placements:
        if part.size(place.dim) % (axis.size * place.outer):
            raise PlanError(
                f"batch input {wanted.name!r}: {part.size(place.dim)} on dim {place.dim} of a micro-batch "
                f"do not divide over {axis.size} ranks"
            )
        part = take_part(part, axis, place.dim, place.outer)
    return part
