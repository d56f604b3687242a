"""Step time and peak memory of a plan: the one objective, minimised by the search and reported by `estimate`.

A stage takes its layers' seconds per micro-batch, with the conversions between them and, after the first stage, the
transfer of what it receives. The pipeline takes `Σ stages + (m - 1) · max stage` (every stage once, then the slowest
m - 1 times; GPipe and 1F1B alike, Narayanan et al. 2021) and then the longest gradient synchronisation and update.

A device of stage p holds its state, for each micro-batch in flight what its layers save, what the stage keeps together
and sends on, and the largest working memory of a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from galvatron.ir.strategy import Strategy
from galvatron.passes.costs.model import CostModel, LayerCost
from galvatron.passes.sharding.ties import agreement


@dataclass(frozen=True)
class LayerReport:
    """One layer of an estimate: its strategy and costs, and the seconds of converting its inputs per micro-batch."""

    index: int
    strategy: Strategy
    cost: LayerCost
    conversion_s: float


@dataclass(frozen=True)
class StageReport:
    """One stage of an estimate: seconds per micro-batch by kind, seconds once per step, and bytes per device.

    `bubble_s` is the part of the step in which the stage waits for others.
    """

    layers: tuple[LayerReport, ...]
    compute_s: float
    communication_s: float
    transfer_s: float
    sync_s: float
    update_s: float
    bubble_s: float
    in_flight: int
    state_bytes: float
    activation_bytes: float
    extra_bytes: float

    @property
    def micro_batch_s(self) -> float:
        """Seconds of one micro-batch, forward and backward."""
        return self.compute_s + self.communication_s + self.transfer_s

    @property
    def step_s(self) -> float:
        """Seconds once per step: gradient synchronisation and update."""
        return self.sync_s + self.update_s

    @property
    def peak_bytes(self) -> int:
        """Peak memory of one device."""
        return round(self.state_bytes + self.activation_bytes + self.extra_bytes)


@dataclass(frozen=True)
class Setting:
    """What a plan says besides its stages."""

    global_batch_size: int
    micro_batches: int
    schedule: str
    pipeline_degree: int

    @property
    def micro_batch(self) -> int:
        """Samples of one micro-batch."""
        return self.global_batch_size // self.micro_batches

    def in_flight(self, stage: int) -> int:
        """Micro-batches whose activations a stage holds at once: all of them under GPipe, one per stage from here to
        the last under 1F1B."""
        if self.schedule == "gpipe":
            return self.micro_batches
        return min(self.pipeline_degree - stage, self.micro_batches)


def step_time_s(stages: Sequence[tuple[float, float]], micro_batches: int) -> float:
    """Step time from each stage's (seconds per micro-batch, seconds per step)."""
    per_micro_batch = [seconds for seconds, _ in stages]
    pipeline_s = sum(per_micro_batch) + (micro_batches - 1) * max(per_micro_batch)
    return pipeline_s + max(seconds for _, seconds in stages)


def settled(model: CostModel, strategies: Sequence[Strategy]) -> CostModel:
    """The costs under a plan with one strategy per layer: each tie as its layers have it."""
    agreed = (i for i, layers in enumerate(model.tied()) if agreement(strategies[layer] for layer in layers))
    return model.with_agreement(frozenset(agreed))


def evaluate_plan(
    model: CostModel, setting: Setting, stages: Sequence[Sequence[Strategy]]
) -> tuple[float, tuple[StageReport, ...]]:
    """Step time of a plan in seconds, and a report per stage; `model` may be for any answer about ties."""
    model = settled(model, [strategy for strategies in stages for strategy in strategies])
    parts: list[dict] = []
    begin, previous = 0, None
    for stage, strategies in enumerate(stages):
        parts.append(_stage(model, setting, stage, begin, tuple(strategies), previous))
        begin, previous = begin + len(strategies), strategies[-1]
    times = [(p["compute_s"] + p["communication_s"] + p["transfer_s"], p["sync_s"] + p["update_s"]) for p in parts]
    total_s = step_time_s(times, setting.micro_batches)
    return total_s, tuple(
        StageReport(**p, bubble_s=total_s - setting.micro_batches * micro_s - step_s)
        for p, (micro_s, step_s) in zip(parts, times, strict=True)
    )


def _stage(
    model: CostModel,
    setting: Setting,
    stage: int,
    begin: int,
    strategies: tuple[Strategy, ...],
    previous: Strategy | None,
) -> dict:
    """The fields of a `StageReport` but `bubble_s`; `previous` is the last strategy of the stage before."""
    size, in_flight = setting.micro_batch, setting.in_flight(stage)
    layers: list[LayerReport] = []
    compute_s = communication_s = sync_s = update_s = state_bytes = 0.0
    activation_bytes = in_flight * model.boundary_bytes(begin + len(strategies), strategies[-1], size)
    before = previous
    for index, strategy in enumerate(strategies, begin):
        cost = model.layer(index, strategy, size).on_stage(begin)
        conversion_s = model.conversion_s(index, before, strategy, size) if before is not None else 0.0
        layers.append(LayerReport(index, strategy, cost, conversion_s))
        compute_s += cost.compute_s
        communication_s += cost.communication_s + conversion_s
        activation_bytes += in_flight * cost.saved_bytes
        if before != strategy or index == begin:
            activation_bytes += in_flight * model.shared_bytes(strategy, size)
        sync_s += cost.sync_s
        update_s += cost.update_s
        state_bytes += cost.state_bytes
        before = strategy
    return {
        "layers": tuple(layers),
        "compute_s": compute_s,
        "communication_s": communication_s,
        "transfer_s": model.transfer_s(begin, previous, size) if previous is not None else 0.0,
        "sync_s": sync_s,
        "update_s": update_s,
        "in_flight": in_flight,
        "state_bytes": state_bytes,
        "activation_bytes": activation_bytes,
        "extra_bytes": max(report.cost.extra_bytes for report in layers),
    }
