"""Roles as boundary conditions: what a role fixes at the border of a layer; the solver finds everything inside.

| role | values that cross the border | parameters | may shard |
|---|---|---|---|
| dp | sharded along the batch; without a batch dimension, whole with a partial gradient | whole, gradient summed | the batch |
| tp | whole | matrices sharded, others as the solver likes | factors of parameters |

A value without a gradient is whole wherever its role does not shard it. The loss leaves a dp axis as a partial sum, and
statistics of the batch leave every axis whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from galvatron.ir.graph import Graph
from galvatron.ir.layout import BROADCAST, PARTIAL, REPLICATE
from galvatron.ir.types import BATCH, TensorType, exact_quotient
from galvatron.passes.sharding.factors import FactorTable, OpFactor
from galvatron.passes.sharding.modes import Mode, Split, State
from galvatron.passes.sharding.solver import Boundary


@dataclass(frozen=True)
class Border:
    """What a class is to its program: which of its values have gradients, which output is the loss, which state trains.

    `whole_outputs` are outputs that every rank must have whole (statistics of the batch), `whole_state` trainable state that
    must be kept whole, its gradient summed.
    """

    differentiable: frozenset[str]
    trainable: frozenset[str]
    loss: str | None = None
    whole_outputs: frozenset[str] = frozenset()
    whole_state: frozenset[str] = frozenset()


def crossing_state(role: str, type_: TensorType, differentiable: bool) -> State:
    """The state, on one axis of a role, of a value of this global type where it crosses from one layer to another."""
    if role == "dp":
        for dim, size in enumerate(type_.shape):
            inside = exact_quotient(size, BATCH) if not isinstance(size, int) else None
            if inside is not None:
                return Split(dim, inside, BATCH)
        return BROADCAST if differentiable else REPLICATE
    return REPLICATE


def _crossings(role: str, graph: Graph, border: Border, names: Iterable[str]) -> dict[str, State]:
    return {n: crossing_state(role, graph.values[n].type, n in border.differentiable) for n in names}


def _dp(graph: Graph, border: Border, table: FactorTable, modes: list[tuple[Mode, ...]]) -> Boundary:
    outputs = _crossings("dp", graph, border, graph.outputs)
    outputs.update((name, REPLICATE) for name in border.whole_outputs)
    if border.loss is not None:
        outputs[border.loss] = PARTIAL
    return Boundary(
        inputs=_crossings("dp", graph, border, [v.name for v in graph.inputs]),
        outputs=outputs,
        state={v.name: (BROADCAST if v.name in border.trainable else REPLICATE,) for v in graph.state},
    )


def _tp(graph: Graph, border: Border, table: FactorTable, modes: list[tuple[Mode, ...]]) -> Boundary:
    """Matrices are sharded wherever some rule can, whatever it costs: a tensor-parallel plan is asked for to save memory.
    Other parameters (biases, gains) are kept as suits the ops that read them."""
    free = border.trainable - border.whole_state
    states: dict[str, list[State]] = {v.name: [REPLICATE] for v in graph.state}
    states.update((n, [BROADCAST]) for n in border.whole_state)
    for name in free:
        splits = _splits(name, graph, modes)
        whole: list[State] = [] if splits and _is_matrix(name, graph, table) else [REPLICATE, BROADCAST]
        states[name] = [*whole, *splits]
    return Boundary(
        inputs=_crossings("tp", graph, border, [v.name for v in graph.inputs]),
        outputs=_crossings("tp", graph, border, graph.outputs),
        state={v.name: tuple(states[v.name]) for v in graph.state},
    )


def _splits(name: str, graph: Graph, modes: list[tuple[Mode, ...]]) -> list[State]:
    """Every way in which some op can read a value sharded."""
    found: dict[State, None] = {}
    for op, choices in zip(graph.ops, modes, strict=True):
        for position, operand in enumerate(op.operands):
            if operand == name:
                found.update((m.operands[position], None) for m in choices if isinstance(m.operands[position], Split))
    return list(found)


def _is_matrix(name: str, graph: Graph, table: FactorTable) -> bool:
    """Whether an op multiplies the value and sums over a dimension of the product: a matrix, a lookup table, a kernel."""
    for index, op in enumerate(graph.ops):
        dims = table.dims[index]
        if name in op.operands and dims is not None:
            kept = {n for tensor in dims.results for names in tensor for n in names}
            if set(dims.sizes) - kept and any(op.operands[i] == name for i in dims.products):
                return True
    return False


@dataclass(frozen=True)
class Role:
    """What a role means on one mesh axis: its boundary condition, and which factors of an op it may shard."""

    boundary: Callable[[Graph, Border, FactorTable, list[tuple[Mode, ...]]], Boundary]
    shards: Callable[[FactorTable, int, OpFactor], bool]


ROLES: dict[str, Role] = {
    "dp": Role(_dp, lambda table, index, factor: factor.size == BATCH),
    "tp": Role(_tp, lambda table, index, factor: factor.size != BATCH and table.of_parameters(index, factor)),
}
"""Every role of a strategy that the partitioner knows."""
