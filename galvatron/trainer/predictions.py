"""What a model returns for a global batch of an evaluation, one row for each of its samples."""

from __future__ import annotations

import torch

from galvatron.compiled import CompiledModel
from galvatron.errors import GalvatronError
from galvatron.outputs import ModelOutputs
from galvatron.runtime import Part


def predictions(compiled: CompiledModel, part: Part, *, with_loss: bool) -> ModelOutputs:
    """The outputs of a batch that every rank has all of, and its loss if it is wanted.

    Samples that do not divide into shards are filled up for the outputs by those at their beginning.
    """
    if part.rows.copies == 1:
        return compiled.eval_step(part, outputs=True) if with_loss else compiled.predict(part)
    shards, samples = compiled.plan.shards, part.samples
    rows = torch.arange(-(-samples // shards) * shards) % samples
    filled = {name: value[rows] if name in compiled.program.batched else value for name, value in part.items()}
    found = compiled.predict(filled)
    loss = compiled.eval_step(part) if with_loss else None
    for name, value in found.items():
        if not value.dim() or len(value) != len(rows):
            raise GalvatronError(
                f"output {name!r} has no row for each sample, and the batch of {samples} samples does not divide into "
                f"{shards} shards: choose per_device_eval_batch_size so that all batches do, or other outputs=[...]"
            )
    return ModelOutputs({name: value[:samples] for name, value in found.items()}, loss)
