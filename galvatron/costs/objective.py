"""Step time and peak memory of a plan: the one objective, minimised by the search and reported by `estimate`.

A stage takes its layers' seconds per micro-batch, with the conversions between them and the transfer of what it
receives from another rank. The pipeline takes what its schedule makes of that (`timeline`), and then the longest update
and what of gradient synchronisation and new values nothing hides.

A device holds the state of its stages, for each micro-batch in flight on one of them what its layers save, what the
stage keeps together and sends on, and the largest working memory of a layer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from galvatron.costs.model import CostModel, Front, LayerCost
from galvatron.costs.sharing import Pace
from galvatron.costs.timeline import MicroBatchTimes, pipeline_s
from galvatron.ir.plan import Ties
from galvatron.ir.strategy import Strategy
from galvatron.schedules import Schedule, held_over_time


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

    What is exposed lengthens the step; what is hidden, under names that end in `_hidden_s`, runs beside something else.
    Per micro-batch, forward and backward:

    Attributes:
        compute_s: kernels.
        host_s: what the process takes to launch them beyond what they take, where the device waits for it.
        communication_s: exposed collectives: `awaited_s`, `gather_s` and `reduce_s`.
        awaited_s: collectives that are waited for where they begin: those of tensor, sequence and context parallelism,
            and conversions between layers.
        gather_s, gather_hidden_s: gathers of values at ZeRO level 3.
        reduce_s, reduce_hidden_s: sums of gradients at levels 2 and 3.
        transfer_s: what is received from the ranks of other stages.

    Once per step:

    Attributes:
        sync_s, sync_hidden_s: sums of gradients without ZeRO and at level 1, and of ties over stages.
        publish_s, publish_hidden_s: gathers of new values at levels 1 and 2.
        update_s, epilogue_s: the optimizer, and the end of the loss that all micro-batches share.
        bubble_s: the part of the step in which its device waits for others, whichever of its stages it has to run; 0
            where it is faster than its seconds say while others wait, by more than it waits itself.
    """

    layers: tuple[LayerReport, ...]
    compute_s: float
    host_s: float
    awaited_s: float
    gather_s: float
    gather_hidden_s: float
    reduce_s: float
    reduce_hidden_s: float
    transfer_s: float
    sync_s: float
    sync_hidden_s: float
    publish_s: float
    publish_hidden_s: float
    update_s: float
    epilogue_s: float
    bubble_s: float
    in_flight: int
    state_bytes: float
    activation_bytes: float
    extra_bytes: float

    @property
    def communication_s(self) -> float:
        """Seconds of exposed collectives of one micro-batch."""
        return self.awaited_s + self.gather_s + self.reduce_s

    @property
    def micro_batch_s(self) -> float:
        """Seconds of one micro-batch, forward and backward."""
        return self.compute_s + self.host_s + self.communication_s + self.transfer_s

    @property
    def step_s(self) -> float:
        """Seconds once per step: exposed sums and new values, update and epilogue."""
        return self.sync_s + self.publish_s + self.update_s + self.epilogue_s

    @property
    def peak_bytes(self) -> int:
        """Peak memory of one device that holds this stage alone; see `peak_bytes`."""
        return round(self.state_bytes + self.activation_bytes + self.extra_bytes)


@dataclass(frozen=True)
class Setting:
    """What a plan says besides its stages, whether the program has an epilogue, and whether ranks that wait leave their
    cores to others."""

    global_batch_size: int
    micro_batches: int
    schedule: str
    pipeline_degree: int
    epilogue: bool = False
    ties: Ties = ()
    pace: Pace | None = None

    @property
    def micro_batch(self) -> int:
        """Samples of one micro-batch."""
        return self.global_batch_size // self.micro_batches

    @cached_property
    def order(self) -> Schedule:
        """The schedule."""
        return Schedule.parse(self.schedule)

    @cached_property
    def lines(self) -> tuple[tuple[float, float], ...]:
        """See `Pace.lines`."""
        return (self.pace or Pace.even(self.pipeline_degree)).lines(self.micro_batches)

    def pipeline_s(self, total_s: Any, slowest_s: Any) -> Any:
        """Seconds of the phases of all micro-batches, where the schedule has phases; numbers or arrays.

        Args:
            total_s: of a micro-batch, the sum over stages.
            slowest_s: of a micro-batch, the slowest stage of each phase, added up.
        """
        (a, b), (c, d) = self.lines
        return np.maximum(a * total_s + b * slowest_s, c * total_s + d * slowest_s)

    @cached_property
    def holders(self) -> tuple[int, ...]:
        """For each stage, the pipeline rank that holds it."""
        return self.order.holders(self.pipeline_degree)

    @cached_property
    def in_flight(self) -> tuple[int, ...]:
        """For each stage, the micro-batches whose activations it holds at once."""
        return self.order.in_flight(self.pipeline_degree, self.micro_batches, epilogue=self.epilogue)


def added_shared_bytes(
    model: CostModel, before: Strategy | None, strategy: Strategy, micro_batch: int, ties: Ties
) -> float:
    """Bytes per micro-batch of values without a gradient that a layer keeps and the layer before it does not.

    Args:
        before: the strategy of the layer before; None for the first layer of a stage.
    """
    own_bytes = model.shared_bytes(strategy, micro_batch, ties)
    if before is None or before.axes != strategy.axes:
        return own_bytes
    return max(0.0, own_bytes - model.shared_bytes(before, micro_batch, ties))


def evaluate_plan(
    model: CostModel, setting: Setting, stages: Sequence[Sequence[Strategy]]
) -> tuple[float, tuple[StageReport, ...]]:
    """Step time of a plan in seconds, and a report per stage."""
    reports: list[StageReport] = []
    begin, previous = 0, None
    fronts = {holder: Front() for holder in setting.holders}
    places = [holder for holder, strategies in zip(setting.holders, stages, strict=True) for _ in strategies]
    for stage, strategies in enumerate(stages):
        holder = setting.holders[stage]
        report, fronts[holder] = _stage(
            model, setting, stage, begin, tuple(strategies), previous, places, fronts[holder]
        )
        reports.append(report)
        begin, previous = begin + len(strategies), strategies[-1]
    once_s, busy_s = [0.0] * setting.pipeline_degree, [0.0] * setting.pipeline_degree
    for holder, report in zip(setting.holders, reports, strict=True):
        once_s[holder] += report.step_s
        busy_s[holder] += setting.micro_batches * report.micro_batch_s + report.step_s
    times = [_times(report) for report in reports]
    total_s = pipeline_s(setting.order, setting.pipeline_degree, setting.micro_batches, times, setting.pace)
    total_s += max(once_s)
    return total_s, tuple(
        replace(report, bubble_s=max(0.0, total_s - busy_s[holder]))
        for holder, report in zip(setting.holders, reports, strict=True)
    )


def peak_bytes(setting: Setting, stages: Sequence[StageReport]) -> tuple[int, ...]:
    """Peak memory of a device of each pipeline rank: the stages that it holds do not peak at the same moment."""
    if setting.order.stages_per_rank == 1:
        return tuple(stage.peak_bytes for stage in stages)
    peaks: list[int] = []
    micro_batches = setting.order.shorter(setting.pipeline_degree, setting.micro_batches, 1)
    for rank, order in enumerate(setting.order.computations(setting.pipeline_degree, micro_batches)):
        own = {i: stage for i, stage in enumerate(stages) if setting.holders[i] == rank}
        kept = {i: stage.activation_bytes / stage.in_flight for i, stage in own.items()}
        activations = max(sum(n * kept[i] for i, n in held.items()) for held in held_over_time(order))
        state = sum(stage.state_bytes for stage in own.values())
        peaks.append(round(state + activations + max(stage.extra_bytes for stage in own.values())))
    return tuple(peaks)


def _times(report: StageReport) -> MicroBatchTimes:
    """What the computations of a stage take; conversions and transfers are as long forward as backward."""
    between_s = (report.transfer_s + sum(layer.conversion_s for layer in report.layers)) / 2
    forward_s = between_s + sum(layer.cost.times.forward_s for layer in report.layers)
    weight_s = sum(layer.cost.weight_s for layer in report.layers)
    return MicroBatchTimes(forward_s, report.micro_batch_s - forward_s - weight_s, weight_s)


def _stage(
    model: CostModel,
    setting: Setting,
    stage: int,
    begin: int,
    strategies: tuple[Strategy, ...],
    previous: Strategy | None,
    places: Sequence[int],
    front: Front,
) -> tuple[StageReport, Front]:
    """The report of a stage but for its bubble, and how far its rank is from the end of its first bucket.

    Args:
        previous: the last strategy of the stage before.
        places: the pipeline ranks of all layers.
        front: how far the rank is before the stage.
    """
    size, ties, held, place = setting.micro_batch, setting.ties, setting.in_flight[stage], setting.holders[stage]
    layers: list[LayerReport] = []
    totals: dict[str, float] = defaultdict(float)
    activation_bytes = held * model.boundary_bytes(begin + len(strategies), strategies[-1], size)
    before = previous
    for index, strategy in enumerate(strategies, begin):
        cost = model.layer(index, strategy, size, ties).beside(lambda layer: places[layer] == place)
        conversion_s = model.conversion_s(index, before, strategy, size) if before is not None else 0.0
        layers.append(LayerReport(index, strategy, cost, conversion_s))
        for name, seconds in _seconds(cost, front).items():
            totals[name] += seconds
        totals["awaited_s"] += conversion_s
        totals["state_bytes"] += cost.state_bytes
        front = front.after(cost.bucket_bytes)
        activation_bytes += held * cost.saved_bytes
        activation_bytes += held * added_shared_bytes(model, before if index > begin else None, strategy, size, ties)
        before = strategy
    arrives = previous is not None and setting.holders[stage - 1] != place
    report = StageReport(
        layers=tuple(layers),
        transfer_s=model.transfer_s(begin, previous, size) if arrives and previous is not None else 0.0,
        bubble_s=0.0,
        in_flight=held,
        activation_bytes=activation_bytes,
        extra_bytes=max(report.cost.extra_bytes for report in layers),
        **totals,
    )
    return report, front


def _seconds(cost: LayerCost, front: Front) -> dict[str, float]:
    """The seconds of a layer, by what a report of its stage calls them."""
    alone_s, exposed = cost.forward_gather_s + cost.backward_gather_s + cost.reduce_s, cost.exposed(front)
    # Gathers and sums beside one backward share what is exposed of both.
    reduce_s = cost.beside_s * (cost.reduce_s / alone_s if alone_s else 0.0)
    gather_s = cost.beside_s - reduce_s
    return {
        "compute_s": cost.compute_s,
        "host_s": cost.host_s,
        "awaited_s": cost.forward_communication_s + cost.backward_communication_s,
        "gather_s": gather_s,
        "gather_hidden_s": cost.forward_gather_s + cost.backward_gather_s - gather_s,
        "reduce_s": reduce_s,
        "reduce_hidden_s": cost.reduce_s - reduce_s,
        "sync_s": float(exposed.sync_s) + cost.across_s,
        "sync_hidden_s": cost.sync_s + cost.start_s * float(front.begins(cost.bucket_bytes)) - float(exposed.sync_s),
        "publish_s": float(exposed.publish_s),
        "publish_hidden_s": cost.publish_s - float(exposed.publish_s),
        "update_s": cost.update_s,
        "epilogue_s": cost.epilogue_s,
    }
