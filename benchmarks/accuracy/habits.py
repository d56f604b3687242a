"""Costs of programs that a framework trains otherwise than the runtime of this package would."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from accuracy.rows import Framework
from galvatron.costs.events import CollectiveCall, Event, Launch, Profile
from galvatron.costs.memory import Memory
from galvatron.costs.model import LayerCost, Repeated
from galvatron.costs.sharded import ShardedCostModel, stage_border
from galvatron.ir.layout import Axis
from galvatron.ir.plan import Ties
from galvatron.ir.program import Program
from galvatron.ir.strategy import Strategy


class FrameworkCosts(ShardedCostModel):
    """A cost model with the habits of a framework; see `Framework`."""

    def __init__(self, program: Program, framework: Framework) -> None:
        super().__init__(program, program.required_cluster)
        self._habits = framework

    def _profile(self, cls: str, strategy: Strategy, ties: Ties) -> Profile:
        profile = super()._profile(cls, strategy, ties)
        if self._habits.copies:
            return profile
        return replace(profile, forward=_without_copies(profile.forward), backward=_without_copies(profile.backward))

    def layer(self, index: int, strategy: Strategy, micro_batch: int, ties: Ties) -> LayerCost:
        cost = super().layer(index, strategy, micro_batch, ties)
        if self._habits.half_gradients:
            cost = _in_halves(cost)
        if self._habits.overlaps_layers:
            cost = self._overlapped(cost)
        return cost

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
            for size, differentiable in self._sent(index, strategy, micro_batch)
        )

    def _overlapped(self, cost: LayerCost) -> LayerCost:
        """With the collectives of its layers beside the kernels of the same pass."""
        exposed_s = self.machine.cluster.levels[0].contention.exposed_s
        return replace(
            cost,
            forward_communication_s=exposed_s(cost.forward_s, cost.forward_communication_s),
            backward_communication_s=exposed_s(cost.backward_s, cost.backward_communication_s),
        )


def _without_copies(events: Sequence[Event]) -> tuple[Event, ...]:
    """Events without the copies that follow collectives."""
    before = (None, *events)
    return tuple(
        event
        for event, last in zip(events, before, strict=False)
        if not (isinstance(event, Launch) and event.name == "clone" and isinstance(last, CollectiveCall))
    )


def _in_halves(cost: LayerCost) -> LayerCost:
    """With gradients in half of the bytes: what they take of memory, and the sums of a step."""
    return replace(
        cost,
        sync_s=cost.sync_s / 2,
        across_s=cost.across_s / 2,
        state=_half(cost.state),
        repeated=tuple(map(_repeated_in_halves, cost.repeated)),
    )


def _repeated_in_halves(one: Repeated) -> Repeated:
    return replace(one, sync_s=one.sync_s / 2, across_s=one.across_s / 2, state=_half(one.state))


def _half(state: Memory) -> Memory:
    return replace(state, gradients=state.gradients / 2)
