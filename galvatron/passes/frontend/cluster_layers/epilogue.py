"""The end of a loss that couples samples, which runs once per step on all micro-batches together.

Up to where it begins a program is per sample: a contrastive loss begins with the products of all samples with all
others, a balance loss of experts with the product of two means. What is alive there crosses into the epilogue, laid end
to end over the micro-batches where it has samples, added up where it is a sum over them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from galvatron.ir.graph import Graph, Op, Ref, Value
from galvatron.ir.micro_batches import COUPLED, SAME, Along, Flow, Spread, batch_state, counts, flow, statistic_state
from galvatron.ir.names import Names
from galvatron.ir.ops.table import operator_of
from galvatron.ir.random import is_random
from galvatron.ir.types import BATCH, Dim, exact_quotient, simplify_dim
from galvatron.passes.frontend.cluster_layers.roles import Roles


def flow_over_micro_batches(graph: Graph, roles: Roles) -> Flow:
    """The states of the values of a flat graph over the micro-batches of a step.

    Statistics of batch inputs are the same in each: they are computed once per step.
    """
    ops = tuple(op for op in graph.ops if not any(v.name in roles.step_values for v in op.results))
    given = tuple(graph.values[name] for name in sorted(roles.step_values))
    states = {value.name: batch_state(value.type) for value in graph.inputs}
    states |= {name: statistic_state(graph.producers[name]) for name in roles.step_values}
    return flow(Graph((*graph.inputs, *given), graph.state, ops, graph.outputs).without_dead_ops(), states)


def with_standard_views(graph: Graph, roles: Roles) -> Graph:
    """The graph with what enters an epilogue told by its type: where samples are an inner factor of a dimension, as in
    two views of a batch one after the other, the dimension is cut before the border and joined behind it.
    """
    states = flow_over_micro_batches(graph, roles).states
    coupled = {i for i in roles.stream if any(states.get(v.name) is COUPLED for v in graph.ops[i].results)}
    joined: dict[str, str] = {}
    names, ops = Names(graph.values), []
    for i, op in enumerate(graph.ops):
        for name in dict.fromkeys(op.operands) if i in coupled else ():
            state, type_ = states[name], graph.values[name].type
            if name not in joined and isinstance(state, Along) and state != batch_state(type_):
                cut = Value(names.fresh("cut"), type_.with_shape(_cut(type_.shape, state)))
                whole = Value(names.fresh("joined"), type_)
                ops.append(Op("aten.reshape.default", (Ref(name), cut.type.shape), (), (cut,), op.source))
                ops.append(Op("aten.reshape.default", (Ref(cut.name), type_.shape), (), (whole,), op.source))
                joined[name] = whole.name
        ops.append(op.map_refs(lambda name: joined.get(name, name)) if i in coupled else op)
    return replace(graph, ops=tuple(ops)) if joined else graph


def _cut(shape: tuple[Dim, ...], state: Along) -> tuple[Dim, ...]:
    """The shape with the dimension of the samples in two: what is outside of them, and they with what is inside."""
    samples = simplify_dim(state.inner * BATCH)
    outer = exact_quotient(shape[state.dim], samples)
    assert outer is not None
    return (*shape[: state.dim], outer, samples, *shape[state.dim + 1 :])


def epilogue_ops(graph: Graph, roles: Roles, parameters: frozenset[str]) -> frozenset[int]:
    """The ops of the stream, by index, that run in the epilogue.

    Empty where nothing couples samples, or not only at the end: what has a matrix or a lookup table of its own is no
    end.
    """
    states = flow_over_micro_batches(graph, roles).states
    stream = frozenset(roles.stream)
    chosen = {i for i in stream if any(states.get(v.name) is COUPLED for v in graph.ops[i].results)}
    index_of = {v.name: i for i in stream for v in graph.ops[i].results}
    chosen |= {index_of[graph.outputs[0]]} if chosen else set()  # the loss is what an epilogue ends in
    while more := _drawn_in(graph, chosen, index_of, states):
        chosen |= more
    again = {index_of[n] for i in stream - chosen for n in graph.ops[i].operands if n in index_of} & chosen
    weights = parameters | roles.derived
    if chosen == stream or any(_is_heavy(graph, i, weights) for i in chosen):
        return frozenset()
    return frozenset() if any(is_random(graph.ops[i]) for i in again) else frozenset(chosen)


def _drawn_in(graph: Graph, chosen: set[int], index_of: Mapping[str, int], states: Mapping[str, Spread]) -> set[int]:
    """The ops whose results the chosen ones read but cannot be given, or can make of what they are given anyway.

    A term that micro-batches count once, each adding its share, is whole only in their sum: such ops stay with them.
    """
    entering = set(_entering(graph, chosen, index_of))

    def is_at_hand(index: int) -> bool:
        op = graph.ops[index]
        inner = {n for n in op.operands if n in index_of}
        made_of = (op, *(graph.producers[n] for n in op.operands if n in graph.producers))
        return bool(inner) and inner <= entering and not is_random(op) and not any(map(counts, made_of))

    return {index_of[n] for n in entering if not _may_enter(graph, n, states) or is_at_hand(index_of[n])}


def _entering(graph: Graph, chosen: set[int], index_of: Mapping[str, int]) -> Iterator[str]:
    """The values of the stream that the chosen ops read and do not compute."""
    return (n for i in chosen for n in graph.ops[i].operands if n in index_of and index_of[n] not in chosen)


def _may_enter(graph: Graph, name: str, states: Mapping[str, Spread]) -> bool:
    """Whether the epilogue can be given a value: its type tells how the parts of the micro-batches make up the whole.

    What is the same in each micro-batch is computed again instead, since it has nothing but parameters upstream.
    """
    state, standard = states[name], batch_state(graph.values[name].type)
    return state is not SAME and standard in (state, SAME)


def _is_heavy(graph: Graph, index: int, weights: frozenset[str]) -> bool:
    op = graph.ops[index]
    return (operator_of(op).contracts or operator_of(op).looks_up) and any(name in weights for name in op.operands)
