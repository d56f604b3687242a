"""From a batch, of which this rank has all samples or those that it needs, to the slices that its stages read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from galvatron.errors import PlanError, did_you_mean
from galvatron.runtime.rows import Cut, Rows, taken
from galvatron.runtime.slices import in_cutting_order
from galvatron.runtime.stage import BatchInput, Stage


@dataclass(frozen=True)
class StageInputs:
    """What one step gives to one stage: keywords of `Stage.step`, of `Stage.forward` for each micro-batch, and of
    `Stage.epilogue`."""

    whole: dict[str, Tensor]
    microbatches: list[dict[str, Tensor]]
    epilogue: dict[str, Tensor]


def read_batch(
    stages: Sequence[Stage], batch: Mapping[str, object], rows: Rows, device: torch.device
) -> dict[int, StageInputs]:
    """By stage, the batch cut into micro-batches along dim 0, then into this rank's shards, on the device.

    Inputs without samples go whole to every micro-batch. Of inputs that are read whole it has what `rows` has.

    Raises:
        PlanError: an input is missing, or a micro-batch does not divide.
    """
    tensors = {name: value for name, value in batch.items() if isinstance(value, Tensor)}
    return {stage.index: _inputs_of(stage, tensors, rows, device) for stage in stages}


def _inputs_of(stage: Stage, batch: Mapping[str, Tensor], rows: Rows, device: torch.device) -> StageInputs:
    whole: dict[str, Tensor] = {}
    epilogue: dict[str, Tensor] = {}
    split: list[dict[str, Tensor]] = [{} for _ in range(rows.micro_batches)]
    for wanted in stage.batch_inputs:
        if wanted.name not in batch:
            raise PlanError(f"the batch has no input {wanted.name!r}; {did_you_mean(wanted.name, batch)}")
        value = batch[wanted.name]
        if wanted.whole:
            whole[wanted.variable] = value.to(device, non_blocking=True)
            continue
        targets = [epilogue] if wanted.epilogue else split
        for keywords, part in zip(targets, _parts(stage, wanted, value, rows), strict=True):
            keywords[wanted.variable] = part.to(device, non_blocking=True)
    return StageInputs(whole, split, epilogue)


def _parts(stage: Stage, wanted: BatchInput, value: Tensor, rows: Rows) -> list[Tensor]:
    """What this rank reads of an input in each micro-batch, or in its epilogue."""
    if not wanted.samples:
        return [_shard(wanted, value)] * (1 if wanted.epilogue else rows.micro_batches)
    return [_shard(wanted, taken(value, at), but=0) for at in rows.parts(Cut.of(stage, wanted))]


def batch_size(batch: Mapping[str, Tensor]) -> int:
    """The number of samples in a batch, of the inputs that hold samples.

    Raises:
        PlanError: the inputs disagree on it.
    """
    sizes = {name: value.size(0) for name, value in batch.items()}
    if len(set(sizes.values())) != 1:
        raise PlanError(f"all inputs that hold samples need the same number of samples on dim 0; got {sizes}")
    return next(iter(sizes.values()))


def _shard(wanted: BatchInput, part: Tensor, *, but: int | None = None) -> Tensor:
    """This rank's slice of a tensor, not cut along the dimension `but`."""
    for axis, place in in_cutting_order(cut for cut in wanted.placements if cut[1].dim != but):
        if part.size(place.dim) % (place.pieces(axis.size) * place.outer):
            raise PlanError(
                f"batch input {wanted.name!r}: {part.size(place.dim)} on dim {place.dim} of a micro-batch "
                f"do not divide over {axis.size} ranks"
            )
        part = place.take(part, axis)
    return part
