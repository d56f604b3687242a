"""`count-once`: what has no samples in it counts once, however many micro-batches a step has.

The losses of the micro-batches of a step add up. A term of the loss that every micro-batch computes alike, such as a
penalty on weights, is divided by their number `m` where it is added to a sum over samples. So is what a piece of state
was before, in its new value. Checks of the model that would couple samples which nothing else couples, such as one of
the loss, are left out, and so is what says of parameters that they have a gradient where no closing layer can tell.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import sympy

from galvatron.ir.graph import Graph, Op, Ref, Source, Value
from galvatron.ir.micro_batches import SAME, SUM, Flow, counted
from galvatron.ir.names import Names
from galvatron.ir.ops.table import operator_of, summands
from galvatron.ir.program import Check, Form, Program, Update
from galvatron.ir.results import leave_out, warn_of_zeros
from galvatron.ir.types import MICRO_BATCHES
from galvatron.passes.base import Pass
from galvatron.passes.frontend.cluster_layers.closings import closing_ops
from galvatron.passes.frontend.cluster_layers.epilogue import flow_over_micro_batches
from galvatron.passes.frontend.cluster_layers.roles import find_roles


@dataclass(frozen=True)
class CountOnce(Pass):
    """Terms of the loss without samples are divided by the number of micro-batches."""

    name = "count-once"
    needs, leaves = Form.CAPTURED, Form.CAPTURED

    def run(self, program: Program) -> Program:
        program = _with_known_gradients(_without_coupling_checks(_with_amounts(program)))
        graph = program.required_graph.without_dead_ops()
        found = flow_over_micro_batches(graph, find_roles(graph, program.state_of))
        return program.with_graph(_counted(graph, found, program.output))


def _without_coupling_checks(program: Program) -> Program:
    """A program with the checks that micro-batches can make of what they have; warns of others."""
    if not program.checks:
        return program
    graph = program.required_graph
    found = flow_over_micro_batches(graph, find_roles(graph, program.state_of))
    unchecked = graph.without_outputs(frozenset(graph.outputs) - {*replace(program, checks=()).results})
    kept: list[Check] = []
    for check in program.checks:
        needed = {v.name for op in replace(graph, outputs=(check.value,)).without_dead_ops().ops for v in op.results}
        if found.states.get(check.value) is SUM or needed & found.couplings.keys() - unchecked.producers.keys():
            leave_out(f"{check.says}: ", "it depends on more of the batch than each sample by itself")
        else:
            kept.append(check)
    program = replace(program, checks=tuple(kept))
    return replace(program, graph=replace(graph, outputs=program.results).without_dead_ops())


def _with_known_gradients(program: Program) -> Program:
    """A program that says of parameters in which steps they have a gradient where sums over the batch tell; warns of
    others."""
    if not program.reached:
        return program
    graph = program.required_graph
    closings = closing_ops(program, graph, find_roles(graph, program.state_of))
    told = {value.name for ops in closings for i in ops for value in graph.ops[i].results}
    reached = tuple(one for one in program.reached if one.value in told)
    warn_of_zeros([name for one in program.reached if one not in reached for name in one.states])
    program = replace(program, reached=reached)
    return replace(program, graph=replace(graph, outputs=program.results).without_dead_ops())


def _with_amounts(program: Program) -> Program:
    """Updates that add to whole numbers say how much they add: of a whole number no share can be taken."""
    graph = program.required_graph
    updates = tuple(
        update if (amount := _amount(graph, update)) is None else replace(update, value=amount, adds=True)
        for update in program.updates
    )
    program = replace(program, updates=updates)
    return replace(program, graph=replace(graph, outputs=program.results))


def _amount(graph: Graph, update: Update) -> str | None:
    """The value that an update adds to what its state was before, if that is a sum of whole numbers."""
    op, type_ = graph.producers[update.value], graph.types[update.value]
    if update.adds or type_.is_floating or not (operator_of(op).commutes and summands(op) == [0, 1]):
        return None
    terms = [arg.name for arg in op.args[:2] if isinstance(arg, Ref) and arg.name != update.state]
    if op.get("alpha") != 1 or update.state not in op.operands or len(terms) != 1:
        return None
    return terms[0] if terms[0] in graph.producers and graph.types[terms[0]] == type_ else None


def _counted(graph: Graph, found: Flow, output: str) -> Graph:
    names = Names(graph.values)
    shares: dict[str, Value] = {}
    ops: list[Op] = []

    def share(name: str) -> str:
        if name not in shares:
            value = graph.values[name]
            shares[name] = Value(names.fresh("share"), value.type)
            ops.append(counted(name, shares[name], _source(graph, name)))
        return shares[name].name

    for op in graph.ops:
        once = found.once.get(op.results[0].name, ())
        renamed = {name: share(name) for name in once if isinstance(name, str)}
        read = op.map_refs(lambda name, renamed=renamed: renamed.get(name, name))
        args = (sympy.sympify(arg) / MICRO_BATCHES if i in once else arg for i, arg in enumerate(read.args))
        ops.append(replace(read, args=tuple(args)))
    counts_again = found.states.get(output) is SAME
    outputs = tuple(share(name) if counts_again and name == output else name for name in graph.outputs)
    return replace(graph, ops=tuple(ops), outputs=outputs)


def _source(graph: Graph, name: str) -> Source | None:
    producer = graph.producers.get(name)
    return producer.source if producer else None
