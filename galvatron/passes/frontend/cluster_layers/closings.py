"""What new values of state need of sums over the whole batch, once per step when it ends.

A bias of experts that grows where few rows go follows from the sign of a sum over all samples: no micro-batch has that,
but nothing of the step waits for it either. So what nothing but new values of state comes of, and what is made of sums
over the batch, of state and of statistics of the step, runs on the sums when all micro-batches are through, whatever
their schedule, in the stage of the layer that made them.
"""

from __future__ import annotations

from collections.abc import Mapping

from galvatron.ir.graph import Graph
from galvatron.ir.micro_batches import COUPLED, SAME, SUM, Spread, counts
from galvatron.ir.program import Program
from galvatron.ir.random import is_random
from galvatron.ir.types import has_samples
from galvatron.passes.frontend.cluster_layers.epilogue import flow_over_micro_batches
from galvatron.passes.frontend.cluster_layers.roles import Roles


def closing_ops(program: Program, graph: Graph, roles: Roles) -> tuple[tuple[int, ...], ...]:
    """The ops of the stream, by index, that run when a step ends: each group by itself."""
    states = flow_over_micro_batches(graph, roles).states
    index_of = {v.name: i for i in roles.stream for v in graph.ops[i].results}
    summed = {name for name in index_of if states.get(name) is SUM and not _has_samples(graph, name)}
    at_hand = _at_hand(program, graph, roles, states)
    others = {program.output, *(result.value for result in (*program.outputs, *program.checks))}
    found = {i for i in roles.stream if any(states.get(v.name) is COUPLED for v in graph.ops[i].results)}

    def may_wait(index: int) -> bool:
        """Whether an op runs as well on the sums, and nothing but what is found reads it."""
        op, made = graph.ops[index], {v.name for v in graph.ops[index].results}
        there = all(n in summed or n in at_hand or index_of.get(n) in found for n in op.operands)
        readers = {index_of.get(v.name) for n in made for reader in graph.consumers[n] for v in reader.results}
        return there and readers <= found and made.isdisjoint(others) and not counts(op) and not is_random(op)

    while odd := {i for i in found if not may_wait(i)}:
        found -= odd
    # What is linear in the sums would give the same in terms, but for rounding: of the mean of counts that are equal,
    # less one of them, nothing may be left.
    for i in reversed(roles.stream):
        if not _is_result(graph, i) and may_wait(i) and not summed.isdisjoint(graph.ops[i].operands):
            found.add(i)
    groups = _connected(graph, sorted(found), index_of)
    return tuple(ops for ops in groups if any(n in summed for i in ops for n in graph.ops[i].operands))


def _at_hand(program: Program, graph: Graph, roles: Roles, states: Mapping[str, Spread]) -> set[str]:
    """What is there when a step ends, or follows from that: state that is whole on every rank, statistics of the step,
    and what floats and reads nothing else."""
    written = {update.state for update in program.updates}
    found = {s.name for s in program.state if s.kind != "parameter" or s.name in written}
    found |= {name for name in roles.step_values if states.get(name, SAME) is SAME}
    for i in roles.floating:
        op, made = graph.ops[i], [v.name for v in graph.ops[i].results]
        if found.issuperset(op.operands) and not counts(op) and not any(_has_samples(graph, name) for name in made):
            found.update(made)
    return found


def _has_samples(graph: Graph, name: str) -> bool:
    return any(map(has_samples, graph.types[name].shape))


def _is_result(graph: Graph, index: int) -> bool:
    return not {v.name for v in graph.ops[index].results}.isdisjoint(graph.outputs)


def _connected(graph: Graph, indices: list[int], index_of: Mapping[str, int]) -> list[tuple[int, ...]]:
    """Ops in groups of which none reads anything of another, each in order, by their first."""
    group_of: dict[int, list[int]] = {}
    for index in indices:
        group = [index]
        for other in {index_of[n] for n in graph.ops[index].operands if index_of.get(n) in group_of}:
            if (joined := group_of[other]) is not group:
                group += joined
                group_of.update(dict.fromkeys(joined, group))
        group_of[index] = group
    return sorted({tuple(sorted(group)) for group in group_of.values()})
