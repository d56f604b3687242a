"""Step time and peak memory of a plan: the one objective, minimised by the search and reported by `estimate`.

A stage takes its layers' seconds per micro-batch, with the conversions between them and the transfer of what it
receives from another rank. The pipeline takes what its schedule makes of that (`timeline`), and then the longest
gradient synchronisation and update.

A device holds the state of its stages, for each micro-batch in flight on one of them what its layers save, what the
stage keeps together and sends on, and the largest working memory of a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from galvatron.costs.model import CostModel, LayerCost
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

    `bubble_s` is the part of the step in which its device waits for others, whichever of its stages it has to run; 0
    where it is faster than its seconds say while others wait, by more than it waits itself.
    """

    layers: tuple[LayerReport, ...]
    compute_s: float
    communication_s: float
    transfer_s: float
    sync_s: float
    update_s: float
    epilogue_s: float
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
        """Seconds once per step: gradient synchronisation, update and epilogue."""
        return self.sync_s + self.update_s + self.epilogue_s

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
    pace: Pace = Pace()

    @property
    def micro_batch(self) -> int:
        """Samples of one micro-batch."""
        return self.global_batch_size // self.micro_batches

    @cached_property
    def order(self) -> Schedule:
        """The schedule."""
        return Schedule.parse(self.schedule)

    @cached_property
    def weights(self) -> tuple[float, float]:
        """How often a phase takes the sum over stages, and how often the slowest stage."""
        return self.pace.weights(self.pipeline_degree, self.micro_batches)

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
    places = [holder for holder, strategies in zip(setting.holders, stages, strict=True) for _ in strategies]
    for stage, strategies in enumerate(stages):
        reports.append(_stage(model, setting, stage, begin, tuple(strategies), previous, places))
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
) -> StageReport:
    """The report of a stage but for its bubble; `previous` is the last strategy of the stage before, `places` are the
    pipeline ranks of all layers."""
    size, ties, held, place = setting.micro_batch, setting.ties, setting.in_flight[stage], setting.holders[stage]
    layers: list[LayerReport] = []
    compute_s = communication_s = sync_s = update_s = epilogue_s = state_bytes = 0.0
    activation_bytes = held * model.boundary_bytes(begin + len(strategies), strategies[-1], size)
    before = previous
    for index, strategy in enumerate(strategies, begin):
        cost = model.layer(index, strategy, size, ties).beside(lambda layer: places[layer] == place)
        conversion_s = model.conversion_s(index, before, strategy, size) if before is not None else 0.0
        layers.append(LayerReport(index, strategy, cost, conversion_s))
        compute_s += cost.compute_s
        communication_s += cost.communication_s + conversion_s
        activation_bytes += held * cost.saved_bytes
        activation_bytes += held * added_shared_bytes(model, before if index > begin else None, strategy, size, ties)
        sync_s += cost.sync_s
        update_s += cost.update_s
        epilogue_s += cost.epilogue_s
        state_bytes += cost.state_bytes
        before = strategy
    arrives = previous is not None and setting.holders[stage - 1] != place
    return StageReport(
        layers=tuple(layers),
        compute_s=compute_s,
        communication_s=communication_s,
        transfer_s=model.transfer_s(begin, previous, size) if arrives and previous is not None else 0.0,
        sync_s=sync_s,
        update_s=update_s,
        epilogue_s=epilogue_s,
        bubble_s=0.0,
        in_flight=held,
        state_bytes=state_bytes,
        activation_bytes=activation_bytes,
        extra_bytes=max(report.cost.extra_bytes for report in layers),
    )
