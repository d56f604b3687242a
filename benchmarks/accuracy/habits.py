"""Costs of programs that a framework trains otherwise than the runtime of this package would."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeGuard

from accuracy.rows import Framework
from galvatron.costs.events import CollectiveCall, Event, Launch, Linear
from galvatron.costs.memory import Memory
from galvatron.costs.model import CostModel, LayerCost, Repeated
from galvatron.costs.profile import Doing
from galvatron.costs.sharded import ShardedCostModel, stage_border
from galvatron.ir.layout import Axis
from galvatron.ir.plan import Ties
from galvatron.ir.program import Program
from galvatron.ir.strategy import Strategy


class FrameworkCosts(ShardedCostModel):
    """A cost model with the habits of a framework; see `Framework`."""

    def __init__(self, program: Program, framework: Framework) -> None:
        super().__init__(program, program.required_cluster, overlap=False)
        self._habits = framework
        self._habitual: dict[Doing, Doing] = {}

    def _doing(self, cls: str, strategy: Strategy, ties: Ties) -> Doing:
        doing = super()._doing(cls, strategy, ties)
        if doing not in self._habitual:
            profile = doing.profile
            forward, backward = self._kernels(profile.forward), self._kernels(profile.backward)
            self._habitual[doing] = replace(doing, profile=replace(profile, forward=forward, backward=backward))
        return self._habitual[doing]

    def _kernels(self, events: Sequence[Event]) -> tuple[Event, ...]:
        if not self._habits.copies:
            events = _without_copies(events)
        return tuple(_fused(events) if self._habits.fused else events)

    def layer(self, index: int, strategy: Strategy, micro_batch: int, ties: Ties) -> LayerCost:
        cost = super().layer(index, strategy, micro_batch, ties)
        if self._habits.half_gradients:
            cost = _in_halves(cost, self.machine.moved_s)
        if self._habits.overlaps_layers:
            cost = self._overlapped(cost)
        return self._copied(cost, strategy) if self._habits.buffers else cost

    under_each = CostModel.under_each

    def transfer_s(self, index: int, strategy: Strategy, micro_batch: int) -> float:
        degree = strategy.degree("tp")
        if not self._habits.scatters or degree == 1:
            return super().transfer_s(index, strategy, micro_batch)
        within = Axis("tp", degree, 1)
        return sum(
            (
                self.machine.collective_s("p2p", size / degree, stage_border(strategy))
                + self.machine.collective_s("all_gather", size, within)
            )
            * (2 if differentiable else 1)
            for size, differentiable in self._borders.sent(index, strategy, micro_batch)
        )

    def _copied(self, cost: LayerCost, strategy: Strategy) -> LayerCost:
        """With values that are copied out of the buffers that they are gathered in, and gradients into those that they
        are summed in, where they take the type of masters."""
        ways = strategy.degree("dp") * strategy.degree("cp")
        values, gradients = cost.state.masters / 2 * ways, cost.state.gradients * ways
        return replace(
            cost,
            forward_s=cost.forward_s + self.machine.moved_s(2 * values),
            backward_s=cost.backward_s + self.machine.moved_s(2 * values + values + gradients),
        )

    def _overlapped(self, cost: LayerCost) -> LayerCost:
        """With the collectives of its layers beside the kernels of the same pass."""
        exposed_s = self.machine.cluster.levels[0].contention.exposed_s
        return replace(
            cost,
            forward_communication_s=exposed_s(cost.forward_s, cost.forward_communication_s),
            backward_communication_s=exposed_s(cost.backward_s, cost.backward_communication_s),
        )


def _without_copies(events: Sequence[Event]) -> list[Event]:
    """Events without the copies that follow collectives."""
    before = (None, *events)
    return [
        event
        for event, last in zip(events, before, strict=False)
        if not (_is_launch(event, "clone") and isinstance(last, CollectiveCall))
    ]


def _fused(events: Sequence[Event]) -> list[Event]:
    """Events with one kernel for a dropout and the sum behind it, which then is of two tensors less, and one for the
    backward of a softmax, which torch has in two of the same bytes."""
    found: list[Event] = []
    for event in events:
        last = found[-1] if found else None
        if _is_launch(event, "_softmax_backward_data") and _is_launch(last, "_softmax_backward_data"):
            continue
        if _is_launch(event, "add") and _is_launch(last, "native_dropout"):
            added = event.traffic_bytes
            third = Linear(added.constant / 3, added.slope / 3)
            both = Linear(last.traffic_bytes.constant + third.constant, last.traffic_bytes.slope + third.slope)
            found[-1] = replace(last, traffic_bytes=both)
            continue
        found.append(event)
    return found


def _is_launch(event: Event | None, name: str) -> TypeGuard[Launch]:
    return isinstance(event, Launch) and event.name == name


def _in_halves(cost: LayerCost, moved_s: Callable[[float], float]) -> LayerCost:
    """With gradients in half of the bytes: what they take of memory, the sums of a step, and adding them up in each
    micro-batch, where old and new ones are read and written."""
    return replace(
        cost,
        backward_s=cost.backward_s - moved_s(cost.state.gradients),
        sync_s=cost.sync_s / 2,
        across_s=cost.across_s / 2,
        state=_half(cost.state),
        repeated=tuple(map(_repeated_in_halves, cost.repeated)),
    )


def _repeated_in_halves(one: Repeated) -> Repeated:
    return replace(one, sync_s=one.sync_s / 2, across_s=one.across_s / 2, state=_half(one.state))


def _half(state: Memory) -> Memory:
    return replace(state, gradients=state.gradients / 2)
