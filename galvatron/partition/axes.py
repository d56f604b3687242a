"""The mesh axes of a class, one after the other: each is solved once for all strategies in which it is the same.

What is found of an axis depends on its role and size, on what collectives take on it, on how far the axes around it cut
the class, and on nothing else: not on its name, nor on its place, nor on the order of the others. So `cp2` inside of
`dp2-tp4` is the same as inside of `tp4-dp2`, as long as these cut the same.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from operator import itemgetter

from galvatron.errors import StrategyError
from galvatron.ir.factors import OpFactor
from galvatron.ir.graph import Graph
from galvatron.ir.layout import Axis, Placement, Shard
from galvatron.ir.types import BATCH, exact_quotient
from galvatron.machine import Machine
from galvatron.partition.boundary import Role
from galvatron.partition.choices import ClassChoices, RoleChoices, Taken
from galvatron.partition.decisions import Decision, Offer, decisions
from galvatron.partition.modes import Split, pieces
from galvatron.partition.prices import ClassPrices, Prices
from galvatron.partition.solver import Boundary, Costs, Solution

Cuts = tuple[tuple["Effect", int], ...]
"""What some axes cut, each with its size, in the order of the effects' numbers."""


@dataclass(frozen=True, eq=False)
class Effect:
    """What an axis cuts of a class, whatever its size: by op the factor that it takes, and the values that it shards,
    whether in folded slices or others. One object, with a number, for all that are equal."""

    number: int
    factors: tuple[OpFactor | None, ...]
    splits: tuple[tuple[str, Split], ...]


@dataclass(frozen=True, eq=False)
class SolvedAxis:
    """What was found of one axis, and of what: its prices are those of the class, where axes solved before share out
    values `ways` ways."""

    graph: Graph
    boundary: Boundary
    solution: Solution
    effect: Effect
    offer: Offer
    outer: SolvedAxis | None
    prices: ClassPrices
    ways: Mapping[str, int]

    @cached_property
    def decisions(self) -> tuple[Decision, ...]:
        """The decision for every op."""
        outer = self.outer.decisions if self.outer else None
        return decisions(self.graph, self.offer, self.boundary, self.solution, outer)

    def costs(self, axis: Axis) -> Costs:
        """What choices cost on the axis that it is of."""
        prices = Prices(self.prices, axis, self.offer.taken, self.ways)
        return Costs(prices.op_s, prices.steps_s, prices.state_s)


class Shares:
    """How far some axes have cut each op's factors and each value."""

    def __init__(self, graph: Graph, cuts: Cuts) -> None:
        self.taken: Taken = [{} for _ in graph.ops]
        self.ways: dict[str, int] = {}
        self.by_split: dict[tuple[str, Split], int] = {}
        for effect, size in cuts:
            for taken, factor in zip(self.taken, effect.factors, strict=True):
                if factor is not None:
                    taken[factor] = taken.get(factor, 1) * size
            for split in effect.splits:
                self.ways[split[0]] = self.ways.get(split[0], 1) * size
                self.by_split[split] = self.by_split.get(split, 1) * size


class SolvedAxes:
    """The axes of one class on one machine.

    Args:
        name: of the class.
        samples: of the whole batch at which choices are priced.
    """

    def __init__(self, name: str, offers: ClassChoices, machine: Machine, samples: int) -> None:
        self._name, self._offers, self._machine, self._graph = name, offers, machine, offers.graph
        self._prices = ClassPrices(offers.graph, offers.table, machine, samples, offers.border)
        self._effects: dict[tuple[Hashable, ...], Effect] = {}
        self._shares: dict[Cuts, Shares] = {}
        self._outermost: dict[tuple[Hashable, ...], int] = {}
        self._solved: dict[tuple[Hashable, ...], SolvedAxis] = {}

    def solved(
        self, axis: Axis, role: Role, placed: Mapping[str, Placement], cuts: Cuts, outer: SolvedAxis | None
    ) -> tuple[Axis, Axis | None, SolvedAxis]:
        """An axis or the outermost part of it, what is then left, and what was found of it.

        Args:
            placed: how the axis is to place some of the trained state. Where its ops cannot read it so it is whole.
            cuts: what the axes solved before cut.
            outer: what was found of the sub-axis around it, if it is what is left of an axis.

        Raises:
            StrategyError: a size at the border of the class does not divide.
        """
        offered = self._offers.under(role, _whole_state(placed))
        size = self._outermost_of(axis.size, offered, cuts)
        axis, left = (axis, None) if size == axis.size else axis.cut(size)
        kept = tuple(sorted(placed.items(), key=itemgetter(0)))
        key = offered, kept, axis.size, self._machine.alike(axis), cuts, outer
        if key not in self._solved:
            self._solved[key] = self._solve(axis, role, offered, placed, cuts, outer)
        return axis, left, self._solved[key]

    def _outermost_of(self, size: int, offered: RoleChoices, cuts: Cuts) -> int:
        key = offered, size, cuts
        if key not in self._outermost:
            self._outermost[key] = offered.outermost(size, self._shares_of(cuts).taken)
        return self._outermost[key]

    def _shares_of(self, cuts: Cuts) -> Shares:
        if cuts not in self._shares:
            self._shares[cuts] = Shares(self._graph, cuts)
        return self._shares[cuts]

    def _solve(
        self,
        axis: Axis,
        role: Role,
        offered: RoleChoices,
        placed: Mapping[str, Placement],
        cuts: Cuts,
        outer: SolvedAxis | None,
    ) -> SolvedAxis:
        shares = self._shares_of(cuts)
        choices = offered.on(axis.size, shares.taken, outer.solution if outer else None)
        bounded = offered.bounded(choices, placed)
        _check_divides(self._name, axis, bounded.boundary, shares)
        prices = Prices(self._prices, axis, shares.taken, shares.ways)
        boundary, solution = bounded.solve(Costs(prices.op_s, prices.steps_s, prices.state_s))
        offer = Offer(self._offers.table, axis.size, role.folded, choices.modes, offered.allowed, shares.taken)
        effect = self._effect(boundary, solution)
        return SolvedAxis(self._graph, boundary, solution, effect, offer, outer, self._prices, shares.ways)

    def _effect(self, boundary: Boundary, solution: Solution) -> Effect:
        states = [*boundary.inputs.items(), *solution.state.items()]
        for op, mode in zip(self._graph.ops, solution.modes, strict=True):
            states += ((value.name, state) for value, state in zip(op.results, mode.results, strict=True))
        told = (
            tuple(mode.factor for mode in solution.modes),
            tuple(_unfolded(name, state) for name, state in states if isinstance(state, Split)),
        )
        if told not in self._effects:
            self._effects[told] = Effect(len(self._effects), *told)
        return self._effects[told]


def _whole_state(placed: Mapping[str, Placement]) -> frozenset[str]:
    """The state that is not to be sharded on an axis."""
    return frozenset(name for name, placement in placed.items() if not isinstance(placement, Shard))


def _check_divides(cls: str, axis: Axis, boundary: Boundary, shares: Shares) -> None:
    for name, state in (*boundary.inputs.items(), *boundary.outputs.items()):
        if isinstance(state, Split) and state.size != BATCH:
            ways = pieces(axis.size, state.folded) * shares.by_split.get(_unfolded(name, state), 1)
            if exact_quotient(state.size, ways) is None:
                raise StrategyError(
                    f"layer class {cls!r}: axis {axis} cannot shard {name!r}, whose dimension of {state.size} does not "
                    f"divide into {ways} pieces; choose another degree or size"
                )


def _unfolded(name: str, split: Split) -> tuple[str, Split]:
    """What of a value is sharded, whether in folded slices or others."""
    return name, replace(split, folded=False)
