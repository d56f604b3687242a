"""Decisions: what the partitioner chose for each op on each mesh axis, and why it left one whole."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass

from galvatron.ir.factors import FactorTable, OpFactor
from galvatron.ir.graph import Graph, Op
from galvatron.ir.ops.foreign import is_foreign
from galvatron.ir.types import BATCH, exact_quotient
from galvatron.partition.choices import Taken
from galvatron.partition.modes import Mode, Split, pieces
from galvatron.partition.solver import Boundary, Solution


class Reason(enum.Enum):
    """Why an op is whole on an axis."""

    NO_RULE = "no rule"
    """The rule table does not know the op."""
    FOREIGN = "no rule: see galvatron.register_rule"
    """It calls an operator of another library, of which nobody has said how it splits."""
    INDIVISIBLE = "cannot be split"
    """It works along the dimension that the axis shards around it, or along every one but the batch."""
    ROLE = "whole by the axis' role"
    """It has dimensions to split, but none that the role splits (tp: those of parameters, cp: the sequence)."""
    SIZE = "size does not divide"
    """A dimension could be split, but not into equal parts on this many devices."""
    CHEAPER = "cheaper whole"
    """It could be split, but its readers or the border of the layer want it whole, and the collective costs more."""

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class Decision:
    """How an op runs on one axis; `whole` says why every rank does all of its work, None where they share it.

    Partial sums do not make it less work.
    """

    mode: Mode
    whole: Reason | None


@dataclass(frozen=True)
class Offer:
    """What there is to choose from on an axis of so many ranks: the modes of every op, the factors that the role
    allows, and how many ways other axes shard each factor of an op already."""

    table: FactorTable
    size: int
    folded: bool
    modes: list[tuple[Mode, ...]]
    allowed: Callable[[int, OpFactor], bool]
    taken: Taken


def decisions(
    graph: Graph, offer: Offer, boundary: Boundary, solution: Solution, outer: tuple[Decision, ...] | None
) -> tuple[Decision, ...]:
    """The decision for every op of a graph on one axis.

    Args:
        outer: those on the sub-axis around this one: what is whole on both is so for the reason there.
    """
    sharded = _sharded(graph, boundary, solution)
    found: list[Decision] = []
    for index, mode in enumerate(solution.modes):
        reason: Reason | None = None
        if mode.factor is None:
            known = outer[index].whole if outer is not None else None
            reason = known or _reason(offer, index, graph.ops[index], not sharded.isdisjoint(graph.ops[index].operands))
        found.append(Decision(mode, reason))
    return tuple(found)


def _sharded(graph: Graph, boundary: Boundary, solution: Solution) -> frozenset[str]:
    """The values that somebody makes or reads sharded on the axis."""
    states = [*boundary.inputs.items(), *boundary.outputs.items(), *solution.state.items()]
    for op, mode in zip(graph.ops, solution.modes, strict=True):
        states += zip(op.operands, mode.operands, strict=True)
        states += ((value.name, state) for value, state in zip(op.results, mode.results, strict=True))
    return frozenset(name for name, state in states if isinstance(state, Split))


def _reason(offer: Offer, index: int, op: Op, reads_sharded: bool) -> Reason:
    """Why an op is whole."""
    if any(mode.factor is not None for mode in offer.modes[index]):
        return Reason.CHEAPER
    dims, factors = offer.table.dims[index], offer.table.op_factors(index)
    if dims is None:
        return Reason.FOREIGN if is_foreign(op.target) else Reason.NO_RULE
    if not factors or (dims.indivisible and all(f.size == BATCH for f in factors)):
        return Reason.INDIVISIBLE
    reached = [f for f in factors if offer.allowed(index, f)]
    if not reached:
        return Reason.INDIVISIBLE if dims.indivisible and reads_sharded else Reason.ROLE
    ways = [pieces(offer.size, offer.folded) * offer.taken[index].get(f, 1) for f in reached]
    uneven = all(exact_quotient(f.size, w) is None for f, w in zip(reached, ways, strict=True))
    return Reason.SIZE if uneven else Reason.INDIVISIBLE
