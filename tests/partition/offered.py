"""The modes of an op on an axis that may shard whatever fits."""

from __future__ import annotations

from collections.abc import Mapping

from galvatron.ir.factors import FactorTable, OpFactor
from galvatron.ir.graph import Graph
from galvatron.partition.modes import Mode, fits, op_modes


def offered(
    graph: Graph,
    index: int,
    table: FactorTable,
    size: int,
    differentiable: frozenset[str],
    taken: Mapping[OpFactor, int] | None = None,
    *,
    folded: bool = False,
    padding: bool = False,
) -> tuple[Mode, ...]:
    """The modes of op `index` on an axis of so many ranks; `taken` is how many ways others shard its factors."""
    every = range(len(table.op_factors(index)))
    fitting = fits(graph, index, table, size, taken or {}, every, folded=folded, padding=padding)
    return op_modes(graph, index, table, differentiable, fitting, folded=folded)
