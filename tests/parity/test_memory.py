"""Memory of a training rank, followed storage by storage: ZeRO lowers it by the bytes that the program states."""

from __future__ import annotations

import gc
from functools import cache

import pytest
import torch

from galvatron import runtime as rt
from galvatron.passes.costs.estimate import estimate_plan
from galvatron.passes.costs.objective import StageReport
from tests.live_storage import LiveStorages
from tests.parity import harness
from tests.parity.subjects import Batch
from tests.ranks import run_ranks

TOLERANCE = 0.02


def followed(world: rt.World, job: harness.Job, batch: Batch) -> tuple[int, int]:
    """Bytes that a rank holds between two steps, and at the most during one."""
    harness.subject(job.name)  # the model itself is not counted
    with LiveStorages() as live:
        program = harness.executor(world, job, optimizer=lambda p: torch.optim.AdamW(p, fused=True))
        program.train_step(batch)
        live.peak_bytes = 0
        program.train_step(batch)
        gc.collect()
        return live.bytes, live.peak_bytes


@cache
def measured(plan: str) -> tuple[int, int, StageReport]:
    """As `followed`, and what the program states."""
    program = harness.planned("llama", plan, 2)
    assert program.plan is not None
    batch = harness.subject("llama").batch(harness.BATCH_SIZE, 1)
    kept, peak = run_ranks(followed, 2, harness.job_of("llama", program), batch, timeout=120)[0]
    return kept, peak, estimate_plan(program, program.plan)[1][0]


@pytest.mark.parametrize("level", ["", "-zero1", "-zero2", "-zero3"])
def test_a_rank_keeps_between_steps_what_the_program_states(level: str) -> None:
    kept, peak, stated = measured(f"m2/dp2{level}")
    assert kept == pytest.approx(stated.state_bytes, rel=TOLERANCE)
    assert peak <= (1 + TOLERANCE) * stated.peak_bytes


@pytest.mark.parametrize("level", [1, 2, 3])
def test_each_level_lowers_memory_by_what_the_program_states(level: int) -> None:
    kept, peak, stated = measured("m2/dp2")
    cut_kept, cut_peak, cut_stated = measured(f"m2/dp2-zero{level}")
    lowered = stated.state_bytes - cut_stated.state_bytes
    assert lowered > 0
    assert kept - cut_kept == pytest.approx(lowered, rel=TOLERANCE)
    # At the peak a layer may be whole besides: the program states the most that this can be.
    assert stated.peak_bytes - cut_stated.peak_bytes <= (1 + TOLERANCE) * (peak - cut_peak)
    assert peak - cut_peak <= (1 + TOLERANCE) * lowered
