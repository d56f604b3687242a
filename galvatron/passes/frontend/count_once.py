"""`count-once`: what has no samples in it counts once, however many micro-batches a step has.

The losses of the micro-batches of a step add up. A term of the loss that every micro-batch computes alike, such as a
penalty on weights, is divided by their number `m` where it is added to a sum over samples.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import sympy

from galvatron.ir.graph import Graph, Op, Source, Value
from galvatron.ir.micro_batches import SAME, Flow, counted
from galvatron.ir.names import Names
from galvatron.ir.program import Form, Program
from galvatron.ir.types import MICRO_BATCHES
from galvatron.passes.base import Pass
from galvatron.passes.frontend.cluster_layers.epilogue import flow_over_micro_batches
from galvatron.passes.frontend.cluster_layers.roles import find_roles


@dataclass(frozen=True)
class CountOnce(Pass):
    """Terms of the loss without samples are divided by the number of micro-batches."""

    name = "count-once"
    needs, leaves = Form.CAPTURED, Form.CAPTURED

    def run(self, program: Program) -> Program:
        graph = program.captured_graph
        live = replace(graph, outputs=(program.output,)).without_dead_ops()
        found = flow_over_micro_batches(live, find_roles(live, program.state_of))
        graph = _counted(graph, found, program.output)
        return replace(program, graph=graph, output=graph.outputs[0])


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
    outputs = (share(output),) if found.states.get(output) is SAME else (output,)
    return replace(graph, ops=tuple(ops), outputs=outputs)


def _source(graph: Graph, name: str) -> Source | None:
    producer = graph.producers.get(name)
    return producer.source if producer else None
