"""What ranks of the memory tests run."""

from __future__ import annotations

import gc

import torch

from galvatron import runtime as rt
from tests.live_storage import LiveStorages
from tests.parity import harness
from tests.parity.subjects import Batch


def peaks(world: rt.World, job: harness.Job, batch: Batch, optimizer: str) -> tuple[int, int, int]:
    """Bytes that a rank holds between two steps, at the most while it computes, and at the most during an update."""
    harness.subject(job.name)  # the model itself is not counted
    with LiveStorages() as live:
        fused = True if optimizer == "fused" else None
        program = harness.executor(world, job, optimizer=lambda p: torch.optim.AdamW(p, fused=fused))
        program.train_step(batch)
        found: list[int] = []

        def updates(*_: object) -> None:
            found.append(live.peak_bytes)
            live.peak_bytes = 0

        assert program.optimizer is not None
        hook = program.optimizer.register_step_pre_hook(updates)
        live.peak_bytes = 0
        program.train_step(batch)
        hook.remove()
        gc.collect()
        return live.bytes, found[0], live.peak_bytes
