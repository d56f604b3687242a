"""Step time and peak memory of a plan: the one objective, minimised by the search and reported by `estimate`.

A stage takes its layers' seconds per micro-batch, with the conversions between them and the transfer of what it
receives from another rank. The pipeline takes what its schedule makes of that (`timeline`), and then the longest update
and what of gradient synchronisation and new values nothing hides.

A device holds the state of its stages, for each micro-batch in flight on one of them what its layers save and what the
stage keeps together, messages under way, and the working memory of the layer that runs, beside which less is left of
its own micro-batch the nearer it is to the beginning of the stage. In the update it holds state and what that takes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from galvatron.costs.memory import Memory
from galvatron.costs.model import CostModel, Front, LayerCost
from galvatron.costs.sharing import Pace
from galvatron.costs.spent import backward_input, forward
from galvatron.costs.timeline import MicroBatchTimes, pipeline_s
from galvatron.ir.arrays import smaller
from galvatron.ir.plan import Ties
from galvatron.ir.strategy import Strategy
from galvatron.schedules import SENDS_IN_FLIGHT, Schedule, held_over_time


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

    Bytes of one device:

    Attributes:
        state: held all the time.
        activation_bytes: of all micro-batches in flight, whose number is `in_flight`.
        extra: in use beside both when most is, less what of them is not there then.
        update_bytes: what the update takes beside the state.
        fixed_bytes: what libraries keep.
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
    state: Memory
    activation_bytes: float
    extra: Memory
    update_bytes: float
    fixed_bytes: float

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
    def state_bytes(self) -> float:
        """Bytes of `state`."""
        return self.state.total

    @property
    def extra_bytes(self) -> float:
        """Bytes of `extra`."""
        return self.extra.total

    @property
    def memory(self) -> Memory:
        """What a device that holds this stage alone has in use when it has most."""
        return most((self,), self.activation_bytes)

    @property
    def peak_bytes(self) -> int:
        """Peak memory of one device that holds this stage alone; see `peak_bytes`."""
        return round(self.memory.total)


@dataclass(frozen=True)
class Setting:
    """What a plan says besides its stages, whether the program has an epilogue, whether ranks that wait leave their
    cores to others, and what libraries keep of a device's memory."""

    global_batch_size: int
    micro_batches: int
    schedule: str
    pipeline_degree: int
    epilogue: bool = False
    ties: Ties = ()
    pace: Pace | None = None
    fixed_bytes: int = 0

    @property
    def micro_batch(self) -> int:
        """Samples of one micro-batch."""
        return self.global_batch_size // self.micro_batches

    def late_bytes(self, cost: LayerCost, in_flight: int) -> float:
        """Bytes of gradients that are not there yet when a stage with so many micro-batches in flight has most
        activations: the first backward makes them as it takes these away. It has most then if all micro-batches are in
        flight. With several, all gradients are there when the second begins, which has lost the activations of one.
        """
        if in_flight < self.micro_batches:
            return 0.0
        return cost.late_bytes if self.micro_batches == 1 else smaller(cost.late_bytes, cost.saved_bytes)

    @cached_property
    def order(self) -> Schedule:
        """The schedule."""
        return Schedule.parse(self.schedule)

    @cached_property
    def shared_pace(self) -> Pace:
        """The pace, that of ranks with a device each where there is none."""
        return self.pace or Pace.even(self.pipeline_degree)

    def pipeline_s(self, total_s: Any, slowest_s: Any, transfer_s: Any = 0.0) -> Any:
        """Seconds of the phases of all micro-batches, where the schedule has phases (`Pace.phases_s`)."""
        return self.shared_pace.phases_s(self.micro_batches, total_s, slowest_s, transfer_s)

    @cached_property
    def holders(self) -> tuple[int, ...]:
        """For each stage, the pipeline rank that holds it."""
        return self.order.holders(self.pipeline_degree)

    @cached_property
    def turning_share(self) -> float:
        """In which share of the micro-batches the backward of the last layer follows its forward at once."""
        turns = self.order.turns(self.pipeline_degree, self.micro_batches, epilogue=self.epilogue)
        return turns / self.micro_batches

    @cached_property
    def in_flight(self) -> tuple[int, ...]:
        """For each stage, the micro-batches whose activations it holds at once."""
        return self.order.in_flight(self.pipeline_degree, self.micro_batches, epilogue=self.epilogue)


def layer_cost(model: CostModel, setting: Setting, index: int, strategy: Strategy) -> LayerCost:
    """What a layer costs in this setting, its repeated parameters not yet settled."""
    cost = model.layer(index, strategy, setting.micro_batch, setting.ties)
    return cost.turned(setting.turning_share) if is_last(model, index) else cost


def is_last(model: CostModel, index: int) -> bool:
    """Whether a layer is the last of all."""
    return index == len(model.kinds()) - 1


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


def messages_bytes(
    model: CostModel, setting: Setting, stage: int, begin: int, end: int, first: Strategy, last: Strategy
) -> float:
    """Bytes of messages under way when a stage holds most micro-batches.

    It has sent values of as many as a rank goes on without waiting for. If some micro-batches have gone back by then,
    the gradients of as many of them are on their way too, and the values of the next one arrive, if there is one.

    Args:
        begin, end: the layers of the stage are `begin..end - 1`.
        first, last: the strategies of the first and the last of them. What a stage receives is taken to be in the
            layout of its first layer.
    """
    size, leaving = setting.micro_batch, min(setting.micro_batches, SENDS_IN_FLIGHT)
    messages_bytes = leaving * model.boundary_bytes(end, last, size)
    if begin:
        back = min(setting.micro_batches - setting.in_flight[stage], SENDS_IN_FLIGHT + 1)
        messages_bytes += back * model.boundary_bytes(begin, first, size)
    return messages_bytes


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
    times = [times_of(report) for report in reports]
    total_s = pipeline_s(setting.order, setting.pipeline_degree, setting.micro_batches, times, setting.pace)
    total_s += max(once_s)
    return total_s, tuple(
        replace(report, bubble_s=max(0.0, total_s - busy_s[holder]))
        for holder, report in zip(setting.holders, reports, strict=True)
    )


def most(stages: Sequence[StageReport], activation_bytes: float) -> Memory:
    """What a device that holds stages has in use when it has most: while it computes, with so many bytes of activations
    at the most, or during the update."""
    state = sum((stage.state for stage in stages), Memory(fixed=max(stage.fixed_bytes for stage in stages)))
    extra = max((stage.extra for stage in stages), key=lambda extra: extra.total)
    computing = state + Memory(activations=activation_bytes) + extra
    updating = state + Memory(working=sum(stage.update_bytes for stage in stages))
    return max(computing, updating, key=lambda memory: memory.total)


def memory_of_ranks(setting: Setting, stages: Sequence[StageReport]) -> tuple[Memory, ...]:
    """What a device of each pipeline rank has in use when it has most: the stages that it holds do not have most of
    their activations at the same moment."""
    if setting.order.stages_per_rank == 1:
        return tuple(stage.memory for stage in stages)
    found: list[Memory] = []
    micro_batches = setting.order.shorter(setting.pipeline_degree, setting.micro_batches, 1)
    for rank, order in enumerate(setting.order.computations(setting.pipeline_degree, micro_batches)):
        own = {i: stage for i, stage in enumerate(stages) if setting.holders[i] == rank}
        kept = {i: stage.activation_bytes / stage.in_flight for i, stage in own.items()}
        activation_bytes = max(sum(n * kept[i] for i, n in held.items()) for held in held_over_time(order))
        found.append(most(tuple(own.values()), activation_bytes))
    return tuple(found)


def peak_bytes(setting: Setting, stages: Sequence[StageReport]) -> tuple[int, ...]:
    """Peak memory of a device of each pipeline rank."""
    return tuple(round(memory.total) for memory in memory_of_ranks(setting, stages))


def times_of(report: StageReport) -> MicroBatchTimes:
    """What the computations of a stage take; conversions are as long forward as backward."""
    forward_s = sum(layer.conversion_s / 2 + layer.cost.times.forward_s for layer in report.layers)
    weight_s = sum(layer.cost.weight_s for layer in report.layers)
    input_s = report.micro_batch_s - report.transfer_s - forward_s - weight_s
    return MicroBatchTimes(forward_s, input_s, weight_s, report.transfer_s)


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
    state, late, extra, activation_bytes = Memory(), Memory(), Memory(), 0.0
    before = previous
    for index, strategy in enumerate(strategies, begin):
        cost = layer_cost(model, setting, index, strategy).beside(lambda layer: places[layer] == place)
        conversion_s = model.conversion_s(index, before, strategy, size) if before is not None else 0.0
        layers.append(LayerReport(index, strategy, cost, conversion_s))
        for name, seconds in _seconds(cost, front).items():
            totals[name] += seconds
        totals["awaited_s"] += conversion_s
        totals["update_bytes"] += cost.update_bytes
        front = front.after(cost.bucket_bytes)
        kept_bytes = cost.saved_bytes
        kept_bytes += added_shared_bytes(model, before if index > begin else None, strategy, size, ties)
        activation_bytes += held * kept_bytes
        state += cost.state
        own_late = Memory(gradients=setting.late_bytes(cost, held))
        # While a layer before it runs backward, this one's activations are gone, and its gradients are there.
        earlier = extra + own_late - Memory(activations=kept_bytes)
        extra = max(earlier, cost.extra, key=lambda memory: memory.total) if layers[1:] else cost.extra
        late += own_late
        before = strategy
    communication_bytes = messages_bytes(
        model, setting, stage, begin, begin + len(strategies), strategies[0], strategies[-1]
    )
    arrives = previous is not None and setting.holders[stage - 1] != place
    report = StageReport(
        layers=tuple(layers),
        transfer_s=model.transfer_s(begin, previous, size) if arrives and previous is not None else 0.0,
        bubble_s=0.0,
        in_flight=held,
        state=state,
        activation_bytes=activation_bytes,
        extra=extra - late + Memory(communication=communication_bytes),
        fixed_bytes=setting.fixed_bytes,
        **totals,
    )
    return report, front


def _seconds(cost: LayerCost, front: Front) -> dict[str, float]:
    """The seconds of a layer, by what a report of its stage calls them."""
    first, then, exposed = forward(cost), backward_input(cost), cost.exposed(front)
    return {
        "compute_s": cost.compute_s,
        "host_s": cost.host_s,
        "awaited_s": first.awaited_s + then.awaited_s,
        "gather_s": first.gather_s + then.gather_s,
        "gather_hidden_s": first.gather_hidden_s + then.gather_hidden_s,
        "reduce_s": then.reduce_s,
        "reduce_hidden_s": then.reduce_hidden_s,
        "sync_s": float(exposed.sync_s) + cost.across_s,
        "sync_hidden_s": cost.sync_s + cost.start_s * float(front.begins(cost.bucket_bytes)) - float(exposed.sync_s),
        "publish_s": float(exposed.publish_s),
        "publish_hidden_s": cost.publish_s - float(exposed.publish_s),
        "update_s": cost.update_s,
        "epilogue_s": cost.epilogue_s,
    }
