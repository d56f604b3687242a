"""Plans: which device runs which layer how. A frozen, versioned, diffable document."""

from __future__ import annotations

from dataclasses import dataclass

from galvatron.ir.strategy import Strategy

SCHEDULES = ("gpipe", "1f1b")


@dataclass(frozen=True)
class Plan:
    """One parallelisation of one program.

    `stages` holds, per pipeline stage, one strategy per layer, in layer order (layers that run once per micro-batch; the
    preamble and per-step layers follow their consumers). Every strategy of a plan uses `world_size / len(stages)` devices.
    `step_time_s` and `peak_bytes` (per stage, per device) are predictions, None in a plan that nobody estimated.
    """

    fingerprint: str
    global_batch_size: int
    world_size: int
    micro_batches: int
    schedule: str
    stages: tuple[tuple[Strategy, ...], ...]
    cluster: str = ""
    step_time_s: float | None = None
    peak_bytes: tuple[int, ...] | None = None

    @property
    def pipeline_degree(self) -> int:
        return len(self.stages)

    @property
    def devices_per_stage(self) -> int:
        return self.world_size // len(self.stages)

    @property
    def strategies(self) -> tuple[Strategy, ...]:
        """One strategy per layer of the whole program."""
        return tuple(s for stage in self.stages for s in stage)
